"""Ternary weights: their product with activations."""
