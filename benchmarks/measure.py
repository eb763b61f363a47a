"""What every record says besides its numbers: machine, versions, and how fast the machine was.

    python -m benchmarks.measure        prints this as one line of JSON

The other scripts run it as a process of its own, so that they hold no accelerator themselves, and
so that the calibration doesn't add to the memory of what is measured.
"""

from __future__ import annotations

import json
import os
import platform
import re
import resource
import statistics
import subprocess
import sys
import time
from collections.abc import Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from bitttt_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent
_PACKAGES = ("jax", "jaxlib", "flax", "optax", "numpy")
# Those that decide how fast the same program is.
_ENVIRONMENT = re.compile(r"^(JAX_(?!COMPILATION_CACHE)|XLA_|LIBTPU_|OMP_|MKL_|MALLOC_|LD_PRELOAD)")
_CPU_FEATURES = (
    "avx2", "avx512f", "avx512_vnni", "avx512_bf16", "avx512_fp16", "amx_bf16", "amx_int8",
    "asimd", "asimddp", "bf16", "i8mm", "sve",
)  # fmt: skip
_CALIBRATION_SIZE = {"cpu": 1024}
_DEFAULT_CALIBRATION_SIZE = 8192
_CALIBRATION_SECONDS = 0.3
_KEPT_STDERR_LINES = 15
_HAS_AFFINITY = hasattr(os, "sched_getaffinity")


class ChildFailed(Exception):
    """A measuring process that gave no result; the message has the end of its stderr."""


def run_child(
    module: str,
    args: Sequence[str] = (),
    env: Mapping[str, str] | None = None,
    python: str = sys.executable,
) -> Any:
    """Runs `python -m module` from the repository's root.

    Args:
      module: prints one line of JSON last.
      args: its arguments.
      env: its whole environment; this process's if None.
      python: the interpreter.

    Returns:
      The parsed line.

    Raises:
      ChildFailed: it ended with an exit code other than 0.
    """
    return json.loads(run([python, "-m", module, *args], env).splitlines()[-1])


def run(command: Sequence[str], env: Mapping[str, str] | None = None) -> str:
    """Runs a command from the repository's root; what it printed.

    Raises:
      ChildFailed: it ended with an exit code other than 0.
    """
    done = subprocess.run(command, cwd=ROOT, env=env, capture_output=True, text=True)
    if done.returncode:
        tail = "\n".join(done.stderr.splitlines()[-_KEPT_STDERR_LINES:])
        raise ChildFailed(f"{' '.join(command[1:4])} ended with {done.returncode}: {tail}")
    return done.stdout


def find_peer(flag: str, packages: Sequence[str]) -> str | None:
    """The interpreter that another framework is measured with; None where it isn't installed.

    Args:
      flag: value of --peer_python; this interpreter if empty.
      packages: what it must be able to import.

    Raises:
      ConfigError: the flag names one that can't.
    """
    command = [flag or sys.executable, "-c", f"import {', '.join(packages)}"]
    try:
        done = subprocess.run(command, capture_output=True, text=True)
    except OSError as error:
        raise ConfigError(f"--peer_python={flag} can't be run", error.strerror or "") from None
    if done.returncode == 0:
        return command[0]
    why = (done.stderr.splitlines() or [""])[-1]
    if flag:
        raise ConfigError(f"--peer_python={flag} can't import {' and '.join(packages)}", why)
    text = f"the peer is left out ({why}); --peer_python=PATH names a Python that has it"
    print(text, file=sys.stderr)
    return None


def observe() -> dict[str, Any]:
    """Machine, versions, environment and calibration as they are now, from another process."""
    return run_child("benchmarks.measure")


def machine() -> dict[str, Any]:
    """The hardware, without its name in the network."""
    import jax
    import psutil

    cpu = _cpu_description()
    features = set(cpu.get("flags", cpu.get("Features", "")).split())
    accelerators = [d.device_kind for d in jax.devices() if d.platform != "cpu"]
    return {
        "cpu": cpu.get("model name", platform.processor() or platform.machine()),
        "cpu_model": "/".join(
            cpu[key] for key in ("cpu family", "model", "stepping") if key in cpu
        ),
        "cpu_features": [name for name in _CPU_FEATURES if name in features],
        "cores": len(os.sched_getaffinity(0)) if _HAS_AFFINITY else os.cpu_count(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30, 1),
        "accelerators": accelerators,
        "system": f"{platform.system()} {platform.release().split('-')[0]}",
        "libc": " ".join(platform.libc_ver()),
    }


def label(machine: Mapping[str, Any]) -> str:
    """A machine's name in file names, such as `intel-xeon-2-cores` or `nvidia-h100-80gb-hbm3`."""
    accelerators = machine["accelerators"]
    if accelerators:
        count = f"-{len(accelerators)}x" if len(accelerators) > 1 else ""
        return _slug(accelerators[0]) + count
    return f"{_slug(_plain(machine['cpu']))}-{machine['cores']}-cores"


def short_description(machine: Mapping[str, Any]) -> str:
    """A machine in a figure's words, such as `2 cores of Intel Xeon`."""
    return (
        ", ".join(machine["accelerators"])
        or f"{machine['cores']} cores of {_plain(machine['cpu'])}"
    )


def versions(packages: Sequence[str] = _PACKAGES) -> dict[str, str]:
    """Python, and those of some packages that are installed."""
    found = {"python": platform.python_version()}
    for name in packages:
        try:
            found[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return found


def revision() -> str:
    """The git revision of the code; empty outside a checkout."""
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty"]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip()


def calibrate() -> dict[str, float]:
    """Median rate of a fixed square matrix product by type, GFLOP/s (Gop/s for int8).

    The median rather than the best: a machine that is busy with something else must show.
    """
    import jax
    import jax.numpy as jnp

    size = _CALIBRATION_SIZE.get(jax.default_backend(), _DEFAULT_CALIBRATION_SIZE)
    rates = {}
    for dtype in ("float32", "bfloat16", "int8"):
        out = jnp.int32 if dtype == "int8" else jnp.float32
        a = jnp.ones((size, size), dtype)
        product = jax.jit(lambda a, out=out: jax.lax.dot(a, a, preferred_element_type=out))
        product(a).block_until_ready()
        seconds = []
        until = time.perf_counter() + _CALIBRATION_SECONDS
        while time.perf_counter() < until or len(seconds) < 5:
            start = time.perf_counter()
            product(a).block_until_ready()
            seconds.append(time.perf_counter() - start)
        rates[dtype] = round(2 * size**3 / statistics.median(seconds) / 1e9, 1)
    return rates


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, quartiles and extremes of at least one value, to four digits."""
    quartiles = statistics.quantiles(values, n=4, method="inclusive") if len(values) > 1 else None
    q25, median, q75 = quartiles or [values[0]] * 3
    found = {"median": median, "q25": q25, "q75": q75, "min": min(values), "max": max(values)}
    return {name: rounded(value) for name, value in found.items()} | {"count": len(values)}


def rounded(value: float, digits: int = 4) -> float:
    """The value to so many significant digits."""
    return float(f"{value:.{digits}g}")


def peak_rss_mib() -> float:
    """Most memory that this process has held so far, in MiB."""
    return round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024, 1)


def now() -> str:
    """Date and time, UTC."""
    return time.strftime("%Y-%m-%d %H:%M:%SZ", time.gmtime())


def _cpu_description() -> dict[str, str]:
    path = Path("/proc/cpuinfo")
    if not path.exists():
        return {}
    first = path.read_text().split("\n\n")[0]
    pairs = (line.partition(":") for line in first.splitlines())
    return {key.strip(): value.strip() for key, _, value in pairs}


def _plain(cpu: str) -> str:
    """A processor's name without marks and frequency."""
    return " ".join(re.sub(r"\((R|TM)\)|\bCPU\b|\bProcessor\b|@.*", " ", cpu).split())


def _slug(text: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", text.lower()).strip("-")


def main() -> None:
    """Prints what `observe` returns."""
    found = {
        "machine": machine(),
        "versions": versions(),
        "environment": {k: v for k, v in sorted(os.environ.items()) if _ENVIRONMENT.match(k)},
        "load": [round(x, 2) for x in os.getloadavg()],
        "calibration_gflops": calibrate(),
    }
    print(json.dumps(found))


if __name__ == "__main__":
    main()
