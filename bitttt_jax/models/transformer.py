"""The language model: embedding, repeated groups of blocks, final norm, output head."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.models.block import BlockState, Group, initial_block_state
from bitttt_jax.ops.product import matmul, matmul_transposed

Params = dict[str, Any]

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class ModelState(NamedTuple):
    """Everything that running sequences need to go on: one pytree for all mixers."""

    position_B: jax.Array
    """Tokens read so far."""
    blocks: tuple[BlockState, ...]
    """One state for each of the config's mixers, stacked over the groups in front."""


class Transformer(nn.Module):
    """A decoder whose hidden states come out normalised; `logits` applies the output head."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        token_BT: jax.Array,
        sequence: Sequence,
        anneal: Anneal = Anneal(),
        blocks: tuple[BlockState, ...] | None = None,
    ) -> tuple[jax.Array, tuple[BlockState, ...] | None]:
        """Returns hidden states `[B, T, D]`, and the blocks' new states where some were given."""
        config = self.config
        embedding = self.param(
            "embed",
            lambda key: {
                "embedding": config.init_std
                * jax.random.normal(key, (config.vocab_size, config.dim))
            },
        )["embedding"]
        if not config.tie_embeddings:
            self.param(
                "head",
                lambda key: {
                    "kernel": config.init_std
                    * jax.random.normal(key, (config.dim, config.vocab_size))
                },
            )
        x_BTD = jnp.take(embedding, token_BT, axis=0).astype(config.compute_dtype)
        group = Group
        if config.remat != "none":
            group = nn.remat(Group, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        x_BTD, blocks = nn.scan(
            group,
            variable_axes={"params": 0, "health": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_groups,
            unroll=min(config.scan_unroll, config.num_groups),
        )(config, name="blocks")(x_BTD, blocks, sequence, anneal)
        return RMSNorm(config.norm_eps, name="final_norm")(x_BTD), blocks


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random initial parameters, float32."""
    token_BT = jnp.zeros((1, config.ttt.mini_batch), jnp.int32)
    position_BT = jnp.arange(token_BT.shape[1])[None]
    return Transformer(config).init(key, token_BT, Sequence(position_BT))["params"]


def output_head(config: ModelConfig, params: Params) -> tuple[jax.Array, bool]:
    """The output matrix, and whether its shape is `[V, D]` (a tied embedding) or `[D, V]`."""
    if config.tie_embeddings:
        return params["embed"]["embedding"], True
    return params["head"]["kernel"], False


def logits(config: ModelConfig, params: Params, hidden_BTD: jax.Array) -> jax.Array:
    """Float32 logits `[B, T, V]` of hidden states."""
    head, is_VD = output_head(config, params)
    rows = hidden_BTD.reshape(-1, config.dim)
    product = matmul_transposed if is_VD else matmul
    return product(rows, head.astype(rows.dtype)).reshape(*hidden_BTD.shape[:-1], -1)


def read(
    config: ModelConfig,
    params: Params,
    token_BT: jax.Array,
    sequence: Sequence | None = None,
    anneal: Anneal = Anneal(),
) -> jax.Array:
    """Hidden states `[B, T, D]` of whole rows, each document from fresh fast weights.

    Args:
      config: the model's.
      params: its parameters.
      token_BT: tokens.
      sequence: where they stand; None for one document a row.
      anneal: values that follow the training step.
    """
    if sequence is None:
        sequence = Sequence(jnp.broadcast_to(jnp.arange(token_BT.shape[1]), token_BT.shape))
    return Transformer(config).apply({"params": params}, token_BT, sequence, anneal)[0]


def init_state(config: ModelConfig, params: Params, batch: int, slots: int) -> ModelState:
    """The state of `batch` sequences of which nothing has been read.

    Args:
      config: the model's.
      params: its parameters.
      batch: number of sequences.
      slots: tokens that attention caches hold: the longest sequence, or with a sliding window
        of w the longest call plus `w - 1`.
    """

    def one_group(group_params):
        return tuple(
            initial_block_state(config, mixer, group_params[f"block_{i}"], batch, slots)
            for i, mixer in enumerate(config.mixers)
        )

    blocks = jax.vmap(one_group)(params["blocks"])
    return ModelState(jnp.zeros(batch, jnp.int32), blocks)


def prefill(
    config: ModelConfig,
    params: Params,
    state: ModelState,
    token_BT: jax.Array,
    length_B: jax.Array,
) -> tuple[jax.Array, ModelState]:
    """Reads the next tokens of running sequences. Any split into calls gives the same outputs.

    Args:
      config: the model's.
      params: its parameters.
      state: where the sequences stand.
      token_BT: tokens; each row is valid up to its length.
      length_B: number of valid tokens; a row of length 0 keeps its state.

    Returns:
      Hidden states `[B, T, D]`, arbitrary beyond each row's length, and the new state.
    """
    place_T = jnp.arange(token_BT.shape[1])
    sequence = Sequence(
        state.position_B[:, None] + place_T, (place_T < length_B[:, None]).astype(jnp.int32)
    )
    outputs: Any = Transformer(config).apply(
        {"params": params}, token_BT, sequence, Anneal(), state.blocks
    )
    hidden, blocks = outputs
    return hidden, ModelState(state.position_B + length_B, blocks)


def step(
    config: ModelConfig, params: Params, state: ModelState, token_B: jax.Array
) -> tuple[jax.Array, ModelState]:
    """Reads one token of every running sequence: hidden states `[B, D]` and the new state."""
    hidden, state = prefill(config, params, state, token_B[:, None], jnp.ones_like(token_B))
    return hidden[:, 0], state
