"""The language model: embedding, repeated groups of blocks, final norm, output head."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import ModelConfig
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.models import parameters
from bitttt_jax.models.block import BlockState, Group, initial_block_state
from bitttt_jax.ops import tables
from bitttt_jax.ops.product import matmul

Params = dict[str, Any]

REMAT_POLICIES = {
    "dots": jax.checkpoint_policies.dots_with_no_batch_dims_saveable,
    "full": jax.checkpoint_policies.nothing_saveable,
}


class ModelState(NamedTuple):
    """Everything that running sequences need to go on: one pytree for all mixers."""

    position_B: jax.Array
    """Tokens read so far."""
    blocks: tuple[Any, ...]
    """A `BlockState` for each of the config's mixers, stacked over the groups in front; where the
    groups' parameters aren't stacked, a tuple of such states for each group."""


class Transformer(nn.Module):
    """A decoder whose hidden states come out normalised; `logits` applies the output head.

    The groups' parameters are stacked under `blocks`, over which a loop goes, or lie group by group
    (`parameters.unstack`): then nothing is copied out of a stack, and every group is compiled.
    """

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
        embedding = self._table("embed", "embedding", config.vocab_size, config.dim)
        if not config.tie_embeddings:
            self._table("head", "kernel", config.dim, config.vocab_size)
        x_BTD = tables.look_up(embedding, token_BT).astype(config.compute_dtype)
        x_BTD, blocks = self._groups(x_BTD, sequence, anneal, blocks)
        return RMSNorm(config.norm_eps, name="final_norm")(x_BTD), blocks

    def _table(self, name: str, leaf: str, *shape: int) -> tables.Table:
        """The embedding or the output head, in floats or quantised."""
        stored = self.variables.get("params", {}).get(name)
        if stored is not None and tables.is_quantized(stored[leaf]):
            return stored[leaf]
        initial = lambda key: {leaf: self.config.init_std * jax.random.normal(key, shape)}
        return self.param(name, initial)[leaf]

    def _groups(self, x_BTD, sequence: Sequence, anneal: Anneal, blocks):
        """One group after the other: a loop where their parameters are stacked."""
        config = self.config
        if self.has_variable("params", parameters.group_name(0)):
            after = []
            for i in range(config.num_groups):
                one = Group(config, name=parameters.group_name(i))
                x_BTD, state = one(x_BTD, blocks and blocks[i], sequence, anneal)
                after.append(state)
            return x_BTD, blocks and tuple(after)
        group = Group
        if config.remat != "none":
            group = nn.remat(Group, policy=REMAT_POLICIES[config.remat], prevent_cse=False)
        return nn.scan(
            group,
            variable_axes={"params": 0, "health": 0},
            split_rngs={"params": True},
            in_axes=(0, nn.broadcast, nn.broadcast),
            length=config.num_groups,
            unroll=min(config.scan_unroll, config.num_groups),
        )(config, name="blocks")(x_BTD, blocks, sequence, anneal)


def init_params(config: ModelConfig, key: jax.Array) -> Params:
    """Random initial parameters, float32."""
    token_BT = jnp.zeros((1, config.ttt.mini_batch), jnp.int32)
    position_BT = jnp.arange(token_BT.shape[1])[None]
    return Transformer(config).init(key, token_BT, Sequence(position_BT))["params"]


def output_head(
    config: ModelConfig, params: Params, dtype: Any
) -> Callable[[jax.Array], jax.Array]:
    """The function from hidden states `[N, D]` in a type to float32 logits `[N, V]`."""
    name, leaf = ("embed", "embedding") if config.tie_embeddings else ("head", "kernel")
    table = params[name][leaf]
    if not tables.is_quantized(table):
        table = table.astype(dtype)  # here once, not for every chunk of a loss
        if not config.tie_embeddings:
            return lambda x_ND: matmul(x_ND, table)
    return lambda x_ND: tables.project(x_ND, table)


def logits(config: ModelConfig, params: Params, hidden_BTD: jax.Array) -> jax.Array:
    """Float32 logits `[B, T, V]` of hidden states."""
    rows = hidden_BTD.reshape(-1, config.dim)
    head = output_head(config, params, rows.dtype)
    return head(rows).reshape(*hidden_BTD.shape[:-1], -1)


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


def init_state(
    config: ModelConfig, params: Params, batch: int, slots: int, cache: CacheType | None = None
) -> ModelState:
    """The state of `batch` sequences of which nothing has been read.

    Args:
      config: the model's.
      params: its parameters.
      batch: number of sequences.
      slots: tokens that attention caches hold: the longest sequence, or with a sliding window
        of w the longest call plus `w - 1`.
      cache: what attention caches hold; None for the type of the activations.
    """

    def one_group(group_params):
        return tuple(
            initial_block_state(config, mixer, group_params[f"block_{i}"], batch, slots, cache)
            for i, mixer in enumerate(config.mixers)
        )

    if "blocks" in params:
        blocks = jax.vmap(one_group)(params["blocks"])
    else:
        names = map(parameters.group_name, range(config.num_groups))
        blocks = tuple(one_group(params[name]) for name in names)
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
    inputs = (token_BT, _next_tokens(state, token_BT, length_B), Anneal(), state.blocks)
    outputs: Any = Transformer(config).apply({"params": params}, *inputs)
    hidden, blocks = outputs
    return hidden, ModelState(state.position_B + length_B, blocks)


def prefill_observed(
    config: ModelConfig,
    params: Params,
    state: ModelState,
    token_BT: jax.Array,
    length_B: jax.Array,
) -> tuple[jax.Array, ModelState]:
    """Reads the next tokens as `prefill` does, and observes the inner learning.

    Args:
      config: the model's, with a TTT mixer.
      params: its parameters.
      state: where the sequences stand: each at the beginning of a mini-batch of b tokens.
      token_BT: tokens; each row is valid up to its length.
      length_B: number of valid tokens.

    Returns:
      The losses of `ttt.health.inner_losses` in each TTT layer, from the first one on, as
      `[L, B, T // b, 3]`, arbitrary for mini-batches that aren't valid up to their end; and the
      new state.
    """
    inputs = (token_BT, _next_tokens(state, token_BT, length_B), Anneal(), state.blocks)
    (_, blocks), variables = Transformer(config).apply(
        {"params": params}, *inputs, mutable=["health"]
    )
    health = variables["health"]
    places = [f"block_{i}" for i, mixer in enumerate(config.mixers) if mixer != "attention"]
    if "blocks" in health:
        losses = jnp.stack([health["blocks"][at]["mixer"]["losses"] for at in places], axis=1)
        losses = losses.reshape(-1, *losses.shape[2:])
    else:
        groups = [health[parameters.group_name(i)] for i in range(config.num_groups)]
        losses = jnp.stack([group[at]["mixer"]["losses"] for group in groups for at in places])
    return losses, ModelState(state.position_B + length_B, blocks)


def _next_tokens(state: ModelState, token_BT: jax.Array, length_B: jax.Array) -> Sequence:
    """Where the next tokens of running sequences stand."""
    place_T = jnp.arange(token_BT.shape[1])
    return Sequence(
        state.position_B[:, None] + place_T, (place_T < length_B[:, None]).astype(jnp.int32)
    )


def step(
    config: ModelConfig, params: Params, state: ModelState, token_B: jax.Array
) -> tuple[jax.Array, ModelState]:
    """Reads one token of every running sequence: hidden states `[B, D]` and the new state."""
    hidden, state = prefill(config, params, state, token_B[:, None], jnp.ones_like(token_B))
    return hidden[:, 0], state
