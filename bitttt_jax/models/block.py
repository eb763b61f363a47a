"""One block of the decoder, and the group of blocks that repeats over its depth."""

from __future__ import annotations

from typing import Any, NamedTuple

import flax.linen as nn
import jax
import jax.numpy as jnp

from bitttt_jax.config import Mixer, ModelConfig
from bitttt_jax.layers.attention import Attention, CacheType, KVCache, initial_cache
from bitttt_jax.layers.convolution import CausalConvolution
from bitttt_jax.layers.inputs import Anneal, Sequence
from bitttt_jax.layers.mlp import GatedMLP
from bitttt_jax.layers.norm import RMSNorm
from bitttt_jax.layers.ttt import TTT, TTTState, initial_ttt_state


class BlockState(NamedTuple):
    """What a block carries from call to call."""

    mixer: KVCache | TTTState
    tail: jax.Array | None
    """Last inputs of the convolution before the block, where it has one."""


def has_pre_convolution(config: ModelConfig, mixer: Mixer) -> bool:
    """Whether a block starts with a residual convolution (TTT with the Mamba backbone)."""
    return mixer != "attention" and config.ttt.backbone == "mamba"


def initial_block_state(
    config: ModelConfig,
    mixer: Mixer,
    params: dict[str, Any],
    batch: int,
    slots: int,
    cache: CacheType | None = None,
) -> BlockState:
    """The state of `batch` sequences of which nothing has been read.

    Args:
      config: the model's.
      mixer: the block's.
      params: the block's parameters (a TTT mixer starts from its learned fast weights).
      batch: number of sequences.
      slots: size of an attention cache.
      cache: what an attention cache holds; None for the type of the activations.
    """
    tail = None
    if has_pre_convolution(config, mixer):
        tail = jnp.zeros((batch, config.ttt.conv_width - 1, config.dim), config.compute_dtype)
    if mixer == "attention":
        return BlockState(initial_cache(config, batch, slots, cache), tail)
    return BlockState(initial_ttt_state(config, params["mixer"]["fast"], batch), tail)


class Block(nn.Module):
    """`x += mixer(norm(x)); x += mlp(norm(x))`, with the TTT backbone's convolution in front."""

    config: ModelConfig
    mixer: Mixer

    @nn.compact
    def __call__(
        self, x_BTD: jax.Array, sequence: Sequence, anneal: Anneal, state: BlockState | None = None
    ) -> tuple[jax.Array, BlockState | None]:
        """Maps the residual stream `[B, T, D]` to itself; returns the new state where one came."""
        config = self.config
        norm = lambda name: RMSNorm(config.norm_eps, name=name)
        mixer_state, tail = (None, None) if state is None else state
        if has_pre_convolution(config, self.mixer):
            convolve = CausalConvolution(
                config.ttt.conv_width, config.ttt.convolution, name="pre_conv"
            )
            convolved, tail = convolve(norm("pre_conv_norm")(x_BTD), sequence, tail)
            x_BTD += convolved
        mix: Any
        if self.mixer == "attention":
            mix = Attention(config, name="mixer")
        else:
            mix = TTT(config, self.mixer == "ttt_mlp", name="mixer")
        # Ternary layers with norms of their own replace the norms before the block's parts, but
        # the inner learning rate of TTT is defined on normalised inputs.
        bare = config.ternary.inner_norm
        keeps_norm = not (bare and config.ternary.mixer) or self.mixer != "attention"
        mixed, mixer_state = mix(
            norm("mixer_norm")(x_BTD) if keeps_norm else x_BTD, sequence, anneal, mixer_state
        )
        x_BTD += mixed
        keeps_norm = not (bare and config.ternary.mlp)
        x_BTD += GatedMLP(config, name="mlp")(
            norm("mlp_norm")(x_BTD) if keeps_norm else x_BTD, anneal
        )
        return x_BTD, None if state is None else BlockState(mixer_state, tail)


class Group(nn.Module):
    """Consecutive blocks, one for each of the config's mixers."""

    config: ModelConfig

    @nn.compact
    def __call__(
        self,
        x_BTD: jax.Array,
        states: tuple[BlockState, ...] | None,
        sequence: Sequence,
        anneal: Anneal,
    ) -> tuple[jax.Array, tuple[BlockState, ...] | None]:
        """Applies the blocks in order; `states` holds one state for each."""
        after: list[Any] = []
        for i, mixer in enumerate(self.config.mixers):
            block = Block(self.config, mixer, name=f"block_{i}")
            x_BTD, state = block(x_BTD, sequence, anneal, None if states is None else states[i])
            after.append(state)
        return x_BTD, None if states is None else tuple(after)
