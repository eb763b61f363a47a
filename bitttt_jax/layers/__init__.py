"""Flax modules that declare parameters and call the pure functions of ops, ternary and ttt."""
