"""The run directory: what a training run writes, and the only thing that other tools read."""
