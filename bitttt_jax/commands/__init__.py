"""The commands of `bitttt`: one module each, flags in, one call, an exit code out."""
