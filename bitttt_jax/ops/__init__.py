"""Pure functions on arrays: the reference maths that every layer calls."""
