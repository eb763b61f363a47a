"""Test-time training: fast weights that take gradient steps while a sequence is read.

Source of all formulas: Sun et al., "Learning to (Learn at Test Time)", arXiv:2407.04620.
"""
