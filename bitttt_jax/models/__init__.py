"""Assembles blocks into a language model, and counts what it holds and computes."""
