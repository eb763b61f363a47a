"""Exact counts of parameters, bytes and floating-point operations, without building the model."""

from __future__ import annotations

import dataclasses

import jax

from bitttt_jax.config import ModelConfig
from bitttt_jax.models import parameters, transformer


@dataclasses.dataclass(frozen=True)
class Counts:
    """What a model holds and computes."""

    ternary: int
    """Parameters that are ternary in the forward pass."""
    fast: int
    """Initial fast weights."""
    full: int
    """All other parameters, in full precision."""
    forward_flops: float
    """Floating-point (or integer) operations of a token's forward pass, two for a multiply-add;
    matrix products only."""
    state_bytes: int
    """State of one sequence that doesn't grow with its length (fast weights, their gradients,
    convolution tails)."""
    cache_bytes_per_token: int
    """What attention caches grow by with every token."""

    @property
    def total(self) -> int:
        """All parameters."""
        return self.ternary + self.fast + self.full

    @property
    def latent_bytes(self) -> int:
        """Size of the parameters while training, float32."""
        return 4 * self.total

    @property
    def packed_bytes(self) -> int:
        """Size with ternary weights at 2 bits and everything else in bfloat16."""
        return -(-self.ternary // 4) + 2 * (self.fast + self.full)

    @property
    def train_flops(self) -> float:
        """Operations of a token's forward and backward pass, without recomputation."""
        return 3 * self.forward_flops


def count(config: ModelConfig, seq_len: int) -> Counts:
    """Counts a model.

    Args:
      config: the model's, its vocabulary size known.
      seq_len: length of the sequences, on which the cost of attention depends.
    """
    abstract = jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))
    sizes = {"ternary": 0, "fast": 0, "full": 0}
    for path, leaf in parameters.flatten(abstract).items():
        if parameters.is_ternary(config, path):
            kind = "ternary"
        else:
            kind = "fast" if parameters.is_fast(path) else "full"
        sizes[kind] += leaf.size
    flops = sum(
        2.0 * leaf.size
        for path, leaf in parameters.flatten(abstract).items()
        if parameters.is_projection(path) or path.endswith("/learning_rate/kernel")
    )
    flops += 2.0 * config.dim * config.vocab_size
    mixing = sum(_mixing_flops(config, mixer, seq_len) for mixer in config.mixers)
    flops += config.num_groups * mixing

    state = jax.eval_shape(lambda p: transformer.init_state(config, p, 1, 1), abstract)
    cache = fixed = 0
    for path, leaf in parameters.flatten(state.blocks).items():
        size = leaf.size * leaf.dtype.itemsize
        if path.endswith(("mixer/key", "mixer/value")):
            cache += size
        else:
            fixed += size
    return Counts(**sizes, forward_flops=flops, state_bytes=fixed, cache_bytes_per_token=cache)


def _mixing_flops(config: ModelConfig, mixer: str, seq_len: int) -> float:
    """Operations of a token in a mixer besides its projections."""
    H, K, b = config.num_heads, config.width_per_head, config.ttt.mini_batch
    if mixer == "attention":
        span = min(config.window or seq_len, seq_len)
        # Token t sees min(t + 1, span) keys, in a product with keys and one with values.
        seen = (span * (span + 1) / 2 + span * (seq_len - span)) / seq_len
        return 4.0 * H * K * seen
    if mixer == "ttt_linear":
        # key W, query W, and the update K x K; query key^T and overlap D over b tokens.
        return H * (6.0 * K * K + 4.0 * b * K)
    F = config.ttt.mlp_ratio * K
    # Forward of keys and of queries (two layers each), D2 W2^T, and two updates; four overlaps.
    return H * (14.0 * K * F + 4.0 * b * (K + F))
