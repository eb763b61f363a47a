"""Compiles a case of `compile_gpu_cases` for a GPU that needn't be here, and counts its code.

    python -m benchmarks.compile_gpu sm_90 packed_decode

It needs JAX's CUDA plugin, without NVIDIA's libraries, and ptxas of a CUDA toolkit: on the path, or
below the folder that CUDA_HOME names. The last line is JSON: registers of a thread, bytes that it
spills, and products of the matrix units in the kernel's code, by their instruction.
"""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from bitttt_jax.errors import ConfigError, run_main

# Name, multiprocessors, capability, and bytes of shared memory that a block may have.
TARGETS = {
    "sm_90": ("NVIDIA H100 80GB HBM3", 132, (9, 0), 232448),
    "sm_80": ("NVIDIA A100-SXM4-40GB", 108, (8, 0), 166912),
}
_DESCRIPTION = """
gpu_device_info {{
  threads_per_block_limit: 1024
  threads_per_warp: 32
  shared_memory_per_block: 49152
  shared_memory_per_core: {shared_per_core}
  threads_per_core_limit: 2048
  core_count: {cores}
  fpus_per_core: 64
  block_dim_limit_x: 2147483647
  block_dim_limit_y: 65535
  block_dim_limit_z: 65535
  memory_bandwidth: 1555000000000
  l2_cache_size: 41943040
  clock_rate_ghz: 1.41
  device_memory_size: 40000000000
  shared_memory_per_block_optin: {shared}
  cuda_compute_capability {{ major: {major} minor: {minor} }}
  registers_per_core_limit: 65536
  registers_per_block_limit: 65536
}}
platform_name: "CUDA"
dnn_version_info {{ major: 9 minor: 10 patch: 0 }}
runtime_version {{ major: 13 minor: 0 patch: 0 }}
device_description_str: "{name}"
"""
_PRODUCT = re.compile(r"\b(wgmma\.mma_async|mma)\.sync\.aligned\.(\w+)")


def main(argv: Sequence[str]) -> int:
    """Compiles one case; returns the exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    target, case = argv
    ptxas = find_ptxas()
    os.environ["JAX_PLATFORMS"] = "cpu"
    os.environ["PATH"] = f"{ptxas.parent}{os.pathsep}{os.environ['PATH']}"
    with tempfile.TemporaryDirectory(prefix="bitttt-ptx-") as folder:
        # Newer versions of XLA write the text of what Triton made only if they write all of it.
        os.environ["XLA_FLAGS"] = (
            f"--xla_gpu_cuda_data_dir={ptxas.parent.parent} --xla_dump_to={folder} "
            "--xla_dump_emitter_re=.*"
        )
        _compile(target, case)
        print(json.dumps(_counts(Path(folder), ptxas)))


def find_ptxas() -> Path:
    """The assembler of the CUDA toolkit.

    Raises:
      ConfigError: there is none.
    """
    home, nvcc = os.environ.get("CUDA_HOME"), shutil.which("nvcc")
    shown = ""
    if nvcc:  # may be a script that stands for it: the real one says where it is
        command = [nvcc, "--dryrun", "-x", "cu", os.devnull, "-o", os.devnull]
        shown = subprocess.run(command, capture_output=True, text=True).stderr
    top = re.search(r"^#\$ TOP=(.*)$", shown, re.MULTILINE)
    for root in (home, top and top[1]):
        if root and (path := Path(root).resolve() / "bin" / "ptxas").is_file():
            return path
    raise ConfigError(
        "no CUDA toolkit",
        f"CUDA_HOME={home or ''} has no bin/ptxas, and nvcc isn't on the path or names no toolkit",
        "CUDA_HOME=FOLDER of a CUDA 13 toolkit",
    )


def _compile(target: str, case: str) -> None:
    from jax.experimental import topologies
    from jax.sharding import AbstractDevice, AbstractMesh, SingleDeviceSharding, use_abstract_mesh

    from benchmarks.compile_gpu_cases import CASES, CONTROLS

    name, cores, (major, minor), shared = TARGETS[target]
    topology = topologies.get_topology_desc(
        platform="cuda",
        topology_name=target,
        topology="1x1x1",
        target_config=_DESCRIPTION.format(
            name=name,
            cores=cores,
            major=major,
            minor=minor,
            shared=shared,
            shared_per_core=shared + 1024,
        ),
    )
    chip = AbstractDevice(name, cores, "cuda")
    with use_abstract_mesh(AbstractMesh((1,), ("x",), abstract_device=chip)):
        lowered = (CASES | CONTROLS)[case](SingleDeviceSharding(topology.devices[0]))
    lowered.compile()


def _counts(folder: Path, ptxas: Path) -> dict[str, Any]:
    """Of the program's only kernel."""
    (path,) = (
        path for path in folder.glob("*.ptx") if _PRODUCT.search(path.read_text(errors="replace"))
    )
    text = path.read_text()
    target = re.search(r"^\.target (\w+)", text, re.MULTILINE)
    command = [ptxas, "-v", "--gpu-name", target[1] if target else "", path, "-o", os.devnull]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    blocks = re.split(r"Compiling entry function '(\w+)'", done.stderr)
    reports = dict(zip(blocks[1::2], blocks[2::2], strict=True))
    (report,) = (found for name, found in reports.items() if "packed_product" in name)
    number = lambda pattern: int(re.search(pattern, report)[1])  # type: ignore[index]
    return {
        "registers": number(r"Used (\d+) registers"),
        "spill_bytes": number(r"(\d+) bytes spill stores"),
        "products": dict(Counter(".".join(found) for found in _PRODUCT.findall(text))),
    }


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
