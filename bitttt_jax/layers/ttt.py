"""The test-time-training mixers: a small model per head that learns from the tokens it reads."""

from __future__ import annotations

from typing import NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.bitlinear import BitLinear, apply_together
from bitttt_jax.layers.convolution import CausalConvolution
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.norm import LayerNorm, RMSNorm
from bitttt_jax.ops.gate import gated
from bitttt_jax.ops.precision import widen
from bitttt_jax.ops.rope import rope
from bitttt_jax.ttt import inner, scan
from bitttt_jax.ttt.health import inner_losses, learning_report
from bitttt_jax.ttt.state import Learner, StreamState, Views


class TTTState(NamedTuple):
    """What a TTT mixer carries from call to call."""

    stream: StreamState
    query_tail: jax.Array | None
    """Last inputs of the query convolution, `[B, W - 1, H * K]`."""
    key_tail: jax.Array | None


def initial_ttt_state(config: ModelConfig, fast: dict[str, jax.Array], batch: int) -> TTTState:
    """The state of `batch` sequences of which nothing has been read.

    Args:
      config: the model's.
      fast: initial fast weights of one layer, `[H, ...]`.
      batch: number of sequences.
    """
    tail = None
    if config.ttt.shares_qk:
        width = config.num_heads * config.width_per_head
        tail = jnp.zeros((batch, config.ttt.conv_width - 1, width), config.compute_dtype)
    return TTTState(scan.initial_state(fast, batch), tail, tail)


class TTT(nn.Module):
    """TTT-Linear or TTT-MLP (arXiv:2407.04620).

    The projections are ternary; fast weights, inner norm, inner learning rate and convolutions stay
    in float32.

    Attributes:
      config: the model's.
      is_mlp: whether the inner model is the two-layer MLP.
    """

    config: ModelConfig
    is_mlp: bool

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, sequence: Sequence, anneal: Anneal, state: TTTState | None = None
    ) -> tuple[jax.Array, TTTState | None]:
        """Reads tokens and learns from them.

        Args:
          x_BTD: normalised inputs.
          sequence: positions and documents; with a state, one running document a row.
          anneal: values that follow the training step.
          state: what earlier calls have learned; None starts every document afresh.

        Returns:
          `[B, T, D]`, and the new state where one was given.
        """
        config, ternary = self.config, self.config.ternary.mixer
        width = config.num_heads * config.width_per_head
        shares_qk, has_gate = config.ttt.shares_qk, config.ttt.has_gate
        names = (*(("query_key",) if shares_qk else ("query", "key")), "value")
        names += ("gate",) * has_gate
        layers = tuple(BitLinear(config, width, ternary, name=name) for name in names)
        projected = dict(
            zip(names, apply_together(layers, x_BTD, anneal.quantization), strict=True)
        )
        query_tail = key_tail = None
        if shares_qk:
            shared = projected["query_key"]
            tails = (None, None) if state is None else (state.query_tail, state.key_tail)
            convolve = lambda name, tail: CausalConvolution(
                config.ttt.conv_width, config.ttt.convolution, name=name
            )(shared, sequence, tail)
            query, query_tail = convolve("query_conv", tails[0])
            key, key_tail = convolve("key_conv", tails[1])
        else:
            query, key = projected["query"], projected["key"]

        views = self._views(x_BTD, query, key, projected["value"], sequence, anneal)
        learner = self._learner()
        if self.is_mutable_collection("health") and not self.is_initializing():
            self._report(learner, views, state)
        if state is None:
            mixed = scan.read_documents(
                learner,
                views,
                sequence.position_BT,
                sequence.segment_BT,
                form=config.ttt.form,
                remat_group=config.ttt.remat_group,
                implementation=config.ttt.implementation,
            )
        else:
            mixed, stream = scan.read_stream(
                learner,
                views,
                state.stream,
                sequence.position_BT[:, 0],
                sequence.length_B,
                form=config.ttt.form,
            )
            state = TTTState(stream, query_tail, key_tail)
        mixed = mixed.reshape(*x_BTD.shape[:2], width).astype(x_BTD.dtype)
        mixed = LayerNorm(inner.NORM_EPS, name="post_norm")(mixed)
        if has_gate:
            mixed = gated(projected["gate"], mixed, "gelu")
        if config.norm_placement == "subln":
            mixed = RMSNorm(config.norm_eps, name="sub_norm")(mixed)
        output = BitLinear(config, config.dim, ternary, "rows", name="output")
        return output(mixed, anneal.quantization), state

    def _report(self, learner: Learner, views: Views, state: TTTState | None) -> None:
        """Notes how the inner learning goes, in the collection `health`."""
        if state is None:
            self.variable("health", "ttt", lambda: learning_report(learner, views))
        else:
            fast = state.stream.fast
            self.variable("health", "losses", lambda: inner_losses(learner, views, fast))

    def _views(self, x_BTD, query, key, value, sequence: Sequence, anneal: Anneal) -> Views:
        """Queries, keys and values per head in float32, and the inner learning rates."""
        config, ttt = self.config, self.config.ttt
        H, K = config.num_heads, config.width_per_head
        place_BT = sequence.position_BT % ttt.mini_batch
        heads = lambda y: widen(y).reshape(*y.shape[:2], H, K)
        rotate = lambda y: rope(heads(y), place_BT, ttt.rope_theta, interleaved=True)
        gate = self.param(
            "learning_rate",
            lambda key: {
                "kernel": config.init_std * jax.random.normal(key, (config.dim, H)),
                "bias": jnp.zeros(H),
            },
        )
        base = ttt.mlp_lr * anneal.inner_rate if self.is_mlp else ttt.linear_lr
        rate_BTH = base / K * jax.nn.sigmoid(widen(x_BTD) @ gate["kernel"] + gate["bias"])
        return Views(rotate(query), rotate(key), heads(value), rate_BTH)

    def _learner(self) -> Learner:
        """Initial fast weights, inner norm and token scales."""
        config = self.config
        H, K = config.num_heads, config.width_per_head
        hidden = config.ttt.mlp_ratio * K if self.is_mlp else K

        def initial_fast(key):
            key1, key2 = jax.random.split(key)
            normal = lambda key, *shape: config.init_std * jax.random.normal(key, shape)
            fast = {"w1": normal(key1, H, K, hidden), "b1": jnp.zeros((H, hidden))}
            if self.is_mlp:
                fast |= {"w2": normal(key2, H, hidden, K), "b2": jnp.zeros((H, K))}
            return fast

        norm = self.param(
            "fast_norm", lambda key: {"scale": jnp.ones((H, K)), "bias": jnp.zeros((H, K))}
        )
        offset = self.param("token_scale", nn.initializers.zeros, (config.ttt.mini_batch,))
        fast = self.param("fast", initial_fast)
        return Learner(fast, inner.FastNorm(**norm), inner.token_scales(offset))
