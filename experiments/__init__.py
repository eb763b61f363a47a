"""Studies of quality; see README.md. Not part of the installed package."""
