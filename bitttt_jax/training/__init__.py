"""Training: the optimizer, the pure step, its guards, evaluation, and the loop around them."""
