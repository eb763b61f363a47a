"""Implementations of the packed product: `xla` is the contract of the others."""
