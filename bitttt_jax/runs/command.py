"""How a run was started, for those who want to start it again: the text of command.txt."""

from __future__ import annotations

import os
import platform
import shlex
import socket
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path

import bitttt_jax

_PACKAGES = ("jax", "jaxlib", "flax", "optax", "orbax-checkpoint", "numpy")
# Named one by one: an environment also holds keys and passwords.
_ENVIRONMENT = (
    "JAX_PLATFORMS", "XLA_FLAGS", "LIBTPU_INIT_ARGS", "XLA_PYTHON_CLIENT_MEM_FRACTION",
    "XLA_PYTHON_CLIENT_PREALLOCATE", "JAX_COMPILATION_CACHE_DIR", "JAX_COORDINATOR_ADDRESS",
    "CUDA_VISIBLE_DEVICES",
)  # fmt: skip
_GIT_SECONDS = 10


def command_text(argv: Sequence[str]) -> str:
    """Describes a start: command, folder, host, versions, and variables that matter.

    Args:
      argv: the command line, program included.
    """
    facts = {
        "time": time.strftime("%Y-%m-%d %H:%M:%S %z"),
        "cwd": str(Path.cwd()),
        "host": f"{socket.gethostname()} ({platform.platform()})",
        "python": platform.python_version(),
        "bitttt_jax": f"{bitttt_jax.__version__} {_revision()}".rstrip(),
        **{name: _version(name) for name in _PACKAGES},
        **{name: os.environ[name] for name in _ENVIRONMENT if name in os.environ},
    }
    return "\n".join([f"$ {shlex.join(argv)}", *(f"{k} = {v}" for k, v in facts.items())]) + "\n"


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"


def _revision() -> str:
    """The git revision of a source checkout; empty for an installed package."""
    root = Path(bitttt_jax.__file__).parents[1]
    if not (root / ".git").exists():
        return ""
    try:
        result = subprocess.run(
            ["git", "-C", root, "describe", "--always", "--dirty"],
            capture_output=True,
            text=True,
            timeout=_GIT_SECONDS,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return f"(git {result.stdout.strip()})" if result.returncode == 0 else ""
