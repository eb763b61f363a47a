"""Ternary language models that learn while they read, in JAX."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from bitttt_jax.inference.load import load as load

__version__ = "0.1.0"
__all__ = ["load"]


def __getattr__(name: str) -> Any:
    if name == "load":  # imported when it is used: commands start without JAX
        from bitttt_jax.inference.load import load

        return load
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
