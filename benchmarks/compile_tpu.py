"""Compiles a case of `compile_tpu_cases` for a TPU that needn't be here, and counts its code.

    python -m benchmarks.compile_tpu v5e packed_int8_decode

libtpu compiles ahead of time on any x86 machine. The last line is JSON: bundles (VLIW
instructions) of the kernels' whole programs, how many of the slots of its matrix units and of its
spills they fill, the steps of a grid, bytes of the program's arguments and of its memory.
"""

from __future__ import annotations

import collections
import json
import os
import re
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

TOPOLOGIES = {"v5e": "v5e:2x2", "v5p": "v5p:2x2x1", "v6e": "v6e:2x2", "tpu7x": "tpu7x:2x2x1"}
_KERNEL_NAMES = re.compile(r"_(product|kernel)\b")
_COLUMNS = {"matrix_slots": "MXU", "vector_slots": "VALU", "spills": "VSTORE:SPILL"}
_DUMP_ENDING = "-final_hlo-static-per-bundle-utilization.txt"
_ENVIRONMENT = {
    "JAX_PLATFORMS": "cpu",
    "TPU_SKIP_MDS_QUERY": "1",
    "TPU_WORKER_HOSTNAMES": "localhost",
    "TPU_WORKER_ID": "0",
    "TPU_ACCELERATOR_TYPE": "v5litepod-4",
    "TPU_LOG_DIR": "disabled",
    "ALLOW_MULTIPLE_LIBTPU_LOAD": "1",
}


def main(argv: Sequence[str]) -> int:
    """Compiles one case; returns the exit code."""
    # libtpu reads these when it is loaded.
    os.environ.update(_ENVIRONMENT)
    with tempfile.TemporaryDirectory(prefix="bitttt-bundles-") as folder:
        print(json.dumps(_measure(*argv, Path(folder))))
    return 0


def _measure(target: str, name: str, folder: Path) -> dict[str, Any]:
    from jax.experimental import topologies

    from benchmarks.compile_tpu_cases import CASES, CONTROLS, KERNELS

    if name in KERNELS:  # the text of a whole train step would be gigabytes
        os.environ["LIBTPU_INIT_ARGS"] = f"--xla_jf_dump_to={folder} --xla_jf_dump_llo_text=true"
    topology = topologies.get_topology_desc(TOPOLOGIES[target], "tpu")
    compiled, steps = (CASES | CONTROLS)[name](topology.devices)
    memory = compiled.memory_analysis()
    found = {
        "argument_bytes": memory.argument_size_in_bytes,
        "temporary_bytes": memory.temp_size_in_bytes,
    }
    if name in KERNELS:
        slots = _slots(folder)
        found |= {"steps": steps, "bundles_in_all": steps * slots["bundles"], **slots}
    return found


def _slots(folder: Path) -> dict[str, int]:
    """Bundles of all kernels in a dump, and what some of their slots hold."""
    found: collections.Counter[str] = collections.Counter()
    for path in folder.glob(f"*{_DUMP_ENDING}"):
        if not _KERNEL_NAMES.search(path.name):
            continue
        _, names, _, *lines = path.read_text().splitlines()
        bundles = [[int(slots) for slots in line.split()] for line in lines if line[:1].isdigit()]
        columns = zip(names.replace(" ", "").split(","), zip(*bundles, strict=True), strict=True)
        sums = {name: sum(slots) for name, slots in columns}
        found["bundles"] += len(bundles)
        for count, column in _COLUMNS.items():
            found[count] += sums[column]
    if not found:
        raise ValueError("no kernel was compiled")
    return dict(found)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
