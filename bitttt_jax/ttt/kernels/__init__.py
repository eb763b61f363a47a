"""Kernels of the dual form; the XLA code of `ttt.dual` is their contract."""
