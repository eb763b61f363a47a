"""Ternary language models that learn while they read, in JAX."""

__version__ = "0.1.0"
