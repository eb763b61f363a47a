"""What `bitttt doctor` looks at: each check is a function that returns what it found."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import platform
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from importlib import metadata
from pathlib import Path
from typing import Any, Literal

from bitttt_jax import __version__
from bitttt_jax.errors import BittttError
from bitttt_jax.runs.console_text import format_bytes
from bitttt_jax.runs.memory_use import host_memory

Status = Literal["ok", "note", "problem"]

_PACKAGES = ("jax", "jaxlib", "flax", "numpy", "optax", "orbax-checkpoint", "tokenizers")
_LITTLE_DISK = 2 * 10**9
_NO_DISK = 50 * 10**6
# What an extra of setup.cfg adds, by a module of it.
EXTRAS = {"hf": "datasets", "cuda": "jax_cuda12_plugin", "tpu": "libtpu"}
_HARDWARE = {"cuda": ("/dev/nvidiactl", "/dev/nvidia0"), "tpu": ("/dev/accel0", "/dev/vfio/0")}
_ROWS, _INPUTS, _OUTPUTS = 3, 256, 128  # shapes that every kernel takes


@dataclasses.dataclass(frozen=True)
class Finding:
    """What a check found."""

    name: str
    status: Status
    """`note`: works, but slower or with less than there could be; `problem`: doesn't work."""
    text: str
    fix: str = ""
    """What to do about it."""
    figures: dict[str, Any] = dataclasses.field(default_factory=dict)
    """The same for programs."""


def findings() -> Iterator[Finding]:
    """Everything that is checked, in order; a check that fails is a problem, not the end."""
    checks: tuple[Callable[[], Iterator[Finding]], ...] = (
        _versions,
        _devices,
        _native_kernels,
        _products,
        _extras,
        _memory,
        _disk,
        _caches,
    )
    for check in checks:
        name = check.__name__.strip("_").replace("_", " ")
        try:
            yield from check()
        except BittttError as error:
            yield Finding(name, "problem", f"{error.what} {error.why}".strip(), error.fix)
        except Exception as error:  # what can't be checked is what the user came for
            yield Finding(name, "problem", f"{type(error).__name__}: {error}")


def _versions() -> Iterator[Finding]:
    versions = {"bitttt_jax": __version__, "python": platform.python_version()}
    yield Finding(
        "python", "ok", f"{versions['python']}, {sys.platform} {platform.machine()}, {sys.prefix}"
    )
    missing = []
    for name in _PACKAGES:
        try:
            versions[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            missing.append(name)
    text = ", ".join(f"{name} {version}" for name, version in versions.items() if name != "python")
    if missing:
        fix = f"pip install {' '.join(missing)}"
        yield Finding("packages", "problem", f"missing: {', '.join(missing)}", fix, versions)
    elif versions["jax"].split(".")[:2] != versions["jaxlib"].split(".")[:2]:
        fix = f"pip install jax=={versions['jax']} jaxlib=={versions['jax']}"
        text = f"jax {versions['jax']} doesn't go with jaxlib {versions['jaxlib']}"
        yield Finding("packages", "problem", text, fix, versions)
    else:
        yield Finding("packages", "ok", text, figures=versions)


def _devices() -> Iterator[Finding]:
    import jax

    from bitttt_jax.distributed.devices import device_name

    devices = [
        {"name": device_name(device), "kind": device.device_kind, **_memory_of(device)}
        for device in jax.devices()
    ]
    text = ", ".join(f"{device['name']} ({device['kind']})" for device in devices)
    yield Finding("devices", "ok", text, figures={"devices": devices})
    for extra, paths in _HARDWARE.items():
        backend = "gpu" if extra == "cuda" else extra
        if any(map(os.path.exists, paths)) and jax.default_backend() != backend:
            text = f"there is a {backend.upper()} here that JAX doesn't use"
            asked = os.environ.get("JAX_PLATFORMS")
            fix = f"unset JAX_PLATFORMS (it is {asked})" if asked else _install(extra)
            yield Finding(backend, "note", text, fix)


def _memory_of(device: Any) -> dict[str, int]:
    stats = device.memory_stats() or {}
    return {key: stats[key] for key in ("bytes_in_use", "bytes_limit") if key in stats}


def _native_kernels() -> Iterator[Finding]:
    from bitttt_jax import native

    found = native.instruction_set()
    if found:
        yield Finding("native", "ok", f"kernels for {found}", figures={"instruction_set": found})
        return
    what = "don't fit this JAX" if native.LIBRARY.is_file() else "aren't compiled"
    yield Finding(
        "native",
        "note",
        f"the kernels for CPUs {what}: packed models are several times slower",
        "a C++ compiler (apt install g++, or xcode-select --install), then pip install -e . again",
    )


def _products() -> Iterator[Finding]:
    """A product on each kernel, beside numpy's of the same integers."""
    import jax
    import numpy as np

    from bitttt_jax import native
    from bitttt_jax.ternary.matmul import Choice, matmul
    from bitttt_jax.ternary.packing import Layout, pack

    rng = np.random.default_rng(0)
    x = rng.normal(size=(_ROWS, _INPUTS)).astype(np.float32)
    codes = rng.integers(-1, 2, (_INPUTS, _OUTPUTS), np.int8)
    scale = np.float32(0.05)
    step = np.abs(x).max(axis=1, keepdims=True) / 127
    expected = np.rint(x / step) @ codes.astype(np.float32) * step * scale
    kernels: dict[Choice, Layout] = {"xla": "i2_s"}
    if native.platform() == "cpu" and native.instruction_set():
        kernels["cpu"] = "i2_s"
    if native.platform() == "gpu":
        kernels["pallas_gpu"] = "i2_s"
    if native.platform() == "tpu":
        kernels["pallas_tpu"] = "rows4"
    for kernel, layout in kernels.items():
        weight = pack(jax.numpy.asarray(codes), jax.numpy.asarray(scale), layout)
        name = f"kernel {kernel}"
        try:
            product = matmul(jax.numpy.asarray(x), [weight], implementation=kernel)[0]
            error = float(np.abs(np.asarray(product) - expected).max() / np.abs(expected).max())
        except Exception as problem:
            yield Finding(name, "problem", f"{type(problem).__name__}: {str(problem)[:300]}")
            continue
        # One rounding of an activation may fall on the other side.
        good = error < 0.01
        text = f"{_ROWS} x {_INPUTS} x {_OUTPUTS}, largest difference to numpy {error:.1e}"
        fix = "" if good else "an issue with this output: answers of packed models are wrong here"
        yield Finding(name, "ok" if good else "problem", text, fix, {"difference": error})


def _extras() -> Iterator[Finding]:
    for extra, module in EXTRAS.items():
        if importlib.util.find_spec(module):
            yield Finding(f"extra {extra}", "ok", "installed", figures={"installed": True})
        elif extra not in _HARDWARE:  # those are asked for where there is the hardware
            text = "isn't installed: Hugging Face datasets can't be read"
            yield Finding(f"extra {extra}", "note", text, _install(extra), {"installed": False})


def _install(extra: str) -> str:
    return f"pip install 'bitttt-jax[{extra}]'"


def _memory() -> Iterator[Finding]:
    memory = host_memory()
    figures = {"used": memory.used, "total": memory.total, "pressure": memory.level}
    status: Status = "note" if memory.level == "full" else "ok"
    fix = "" if status == "ok" else "closing other programs, before a model is loaded"
    yield Finding("memory", status, str(memory), fix, figures)


def _disk() -> Iterator[Finding]:
    for name, folder in (("disk", Path.cwd()), ("temporary files", Path(tempfile.gettempdir()))):
        free = shutil.disk_usage(folder).free
        status: Status = "problem" if free < _NO_DISK else "note" if free < _LITTLE_DISK else "ok"
        text = f"{format_bytes(free)} free at {folder}"
        fix = "" if status == "ok" else "freeing some: checkpoints and models need room"
        if not os.access(folder, os.W_OK):
            status, fix = "note", "another folder, where runs and models can be written"
            text += ", which isn't writable"
        yield Finding(name, status, text, fix, {"path": str(folder), "free": free})


def _caches() -> Iterator[Finding]:
    from bitttt_jax.distributed.processes import use_compile_cache

    folder = use_compile_cache()
    if folder is None:
        text = "compiled programs aren't kept: each start compiles"
        fix = "a home folder that can be written, or $XDG_CACHE_HOME"
        yield Finding("compile cache", "note", text, fix)
    else:
        size = sum(file.stat().st_size for file in folder.rglob("*") if file.is_file())
        text = f"{format_bytes(size)} in {folder}"
        yield Finding("compile cache", "ok", text, "", {"path": str(folder), "bytes": size})
    home = Path(os.environ.get("HF_HOME") or Path.home() / ".cache" / "huggingface")
    hub = Path(os.environ.get("HF_HUB_CACHE") or home / "hub")
    models = len(list(hub.glob("models--*"))) if hub.is_dir() else 0
    offline = os.environ.get("HF_HUB_OFFLINE", "") not in ("", "0")
    text = f"{models} models in {hub}" + (", offline (HF_HUB_OFFLINE)" if offline else "")
    yield Finding(
        "Hub cache", "ok", text, figures={"path": str(hub), "models": models, "offline": offline}
    )
