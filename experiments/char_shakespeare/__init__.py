"""Ternary models beside nanoGPT on characters; see README.md."""
