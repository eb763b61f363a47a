"""The native CPU kernels: a library in C++ that XLA calls on its own threads.

The package's installation compiles it (`setup.py`). It holds every kernel for several instruction
sets and takes the best that the CPU has. Where it couldn't be compiled everything works without
it, slower.
"""

from __future__ import annotations

import ctypes
import functools
import re
from pathlib import Path
from typing import Literal

import jax

from bitttt_jax.errors import ConfigError

Implementation = Literal["xla", "cpu"]
"""What computes a function: XLA, or these kernels."""
Choice = Implementation | Literal["auto"]
"""`auto` is the fastest that fits."""

LIBRARY = Path(__file__).with_name("kernels.so")
_TARGETS = (
    "convolution_forward",
    "convolution_backward",
    "ttt_forward",
    "ttt_backward",
    "packed_matmul",
    "table_matmul",
    "grouped_matmul",
    "refined_matmul",
    "cached_attention",
    "read_memory",
    "rms_norm",
    "gate",
    "argmax",
    "few_rows_matmul",
    "int8_rows_matmul",
)


@functools.cache
def instruction_set() -> str | None:
    """Makes the kernels known to XLA.

    Returns:
      The instruction set that they use here, such as `avx512`; None if there are no kernels: not
      compiled, or for a JAX or a platform that doesn't fit.
    """
    try:
        library = ctypes.CDLL(str(LIBRARY))
        # XLA would refuse a library of a later interface than its own when it makes its first
        # device, and then have none at all.
        if library.interface_version() > _interface_version():
            return None
        for name in _TARGETS:
            handler = jax.ffi.pycapsule(getattr(library, name))
            jax.ffi.register_ffi_target(f"bitttt_{name}", handler, platform="cpu")
    except (OSError, AttributeError, TypeError, jax.errors.JaxRuntimeError):
        return None
    library.instruction_set.restype = ctypes.c_char_p
    return library.instruction_set().decode()


def _interface_version() -> int:
    """Of the XLA that is installed, numbered as in `kernels.cc`."""
    header = Path(jax.ffi.include_dir()) / "xla" / "ffi" / "api" / "c_api.h"
    text = header.read_text()
    major, minor = (
        int(re.search(rf"#define XLA_FFI_API_{part} (\d+)", text)[1])  # type: ignore[index]
        for part in ("MAJOR", "MINOR")
    )
    return 1000 * major + minor


def platform() -> str:
    """What computes: the current mesh's devices, also where they aren't this machine's."""
    device = jax.sharding.get_abstract_mesh().abstract_device
    return device.platform if device else jax.default_backend()


def choose(asked: Choice, fits: bool, needs: str, *, on_mesh: bool = False) -> Implementation:
    """The implementation of a function that has a native kernel.

    Args:
      asked: one by name, or `auto`.
      fits: whether the kernel takes these shapes and types.
      needs: which it takes, for the message.
      on_mesh: whether it is run by `over_mesh`, on each device's part.

    Raises:
      ConfigError: the one asked for can't run.
    """
    # The partitioner can't look into native code: over several devices it would gather everything.
    is_whole = on_mesh or jax.sharding.get_abstract_mesh().size <= 1
    runs = platform() == "cpu" and is_whole and fits
    if asked != "xla" and runs and instruction_set() is not None:
        return "cpu"
    if asked == "cpu":
        raise ConfigError(
            "the native kernels can't be used here",
            f"they need {'CPU devices' if on_mesh else 'a single CPU device'}, {needs}, and a C++ "
            "compiler when the package is installed",
            "implementation=auto, or an installation where a compiler is found",
        )
    return "xla"
