"""What a run is about to do, in the words of its banner."""

from __future__ import annotations

import math
import os
from importlib import metadata

import jax
from jax.sharding import Mesh

import bitttt_jax
from bitttt_jax.config import DataConfig, ModelConfig, TrainConfig
from bitttt_jax.models.counts import Counts
from bitttt_jax.runs.console_text import format_bytes, format_count, format_memory
from bitttt_jax.training.setup import Data


def describe_model(config: TrainConfig, counts: Counts) -> str:
    """Size and kind of the network."""
    model = config.model
    lines = [
        f"{config.name}  {format_count(counts.total)} parameters: "
        f"{format_count(counts.ternary)} ternary, {format_count(counts.full)} float, "
        f"{format_count(counts.fast)} initial fast weights  "
        f"({format_bytes(counts.packed_bytes)} packed)",
        f"{model.num_layers} layers of {_mixers(model)}, width {model.dim}, "
        f"{model.num_heads} heads, MLP {model.mlp_dim}, vocabulary {model.vocab_size}",
        f"{_arithmetic(model)}, {format_count(counts.train_flops, 'FLOP')} a token",
    ]
    if model.uses_ttt:
        lines.append(f"{format_bytes(counts.state_bytes)} of fast state a sequence")
    return "\n".join(lines)


def _mixers(model: ModelConfig) -> str:
    form = f" ({model.ttt.form}, mini-batch {model.ttt.mini_batch})" if model.uses_ttt else ""
    return " + ".join(model.mixers) + form


def _arithmetic(model: ModelConfig) -> str:
    ternary = [name for name in ("mixer", "mlp") if getattr(model.ternary, name)]
    if not ternary:
        return f"float weights, {model.compute_dtype} products"
    return (
        f"ternary {' and '.join(ternary)} ({model.ternary.path}), {model.compute_dtype} activations"
    )


def describe_data(config: DataConfig, data: Data) -> str:
    """Text, tokens and batches."""
    train, held_out = data.train, data.validation
    sources = ", ".join(source.path for source in config.sources)
    tokens = config.batch_size * config.seq_len
    text = (
        f"{sources}  {format_count(train.num_tokens)} tokens of "
        f"{train.text_bytes / train.num_tokens:.2f} bytes to train on"
    )
    if held_out is not None:
        text += f", {format_count(held_out.num_tokens)} held out"
    return (
        f"{text}\nbatch {config.batch_size} x {config.seq_len} = {tokens:,} tokens, "
        f"{train.num_tokens / tokens:,.0f} steps an epoch"
    )


def describe_mesh(mesh: Mesh) -> str:
    """Axes and devices."""
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    devices = mesh.devices.flat
    kind = devices[0].device_kind
    memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    return (
        f"{axes}  on {mesh.size} x {kind}, {jax.process_count()} "
        f"process{'es' * (jax.process_count() > 1)}, host memory {format_memory(memory)}"
    )


def describe_schedule(config: TrainConfig) -> str:
    """Optimizer and length of the run."""
    optim = config.optim
    tokens = config.steps * config.data.batch_size * config.data.seq_len
    return (
        f"{config.steps:,} steps, {format_count(tokens)} tokens, {optim.name} "
        f"lr {optim.lr:g} {optim.schedule}, warm-up {optim.warmup_steps}"
    )


def describe_versions() -> str:
    """The libraries that decide the numbers."""
    libraries = (f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax"))
    return "  ".join([f"bitttt-jax {bitttt_jax.__version__}", *libraries])


def state_bytes_per_device(abstract_state: object, shardings: object) -> int:
    """Bytes of a train state on the device that holds most of it."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(abstract_state), jax.tree.leaves(shardings), strict=True
        )
    )
