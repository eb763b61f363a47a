"""What a run is about to do, in the words of its banner."""

from __future__ import annotations

from importlib import metadata

import jax
import psutil
from jax.sharding import Mesh

import bitttt_jax
from bitttt_jax import native
from bitttt_jax.config import DataConfig, ModelConfig, TrainConfig
from bitttt_jax.distributed.processes import describe_process
from bitttt_jax.models.counts import Counts
from bitttt_jax.runs.console_text import format_bytes, format_count, format_memory
from bitttt_jax.training.setup import Compiled, Data


def describe_versions() -> str:
    """The libraries that decide the numbers."""
    libraries = (f"{name} {metadata.version(name)}" for name in ("jax", "flax", "optax"))
    kernels = native.instruction_set()
    return "  ".join(
        [
            f"bitttt-jax {bitttt_jax.__version__}",
            *libraries,
            f"CPU kernels {kernels}" if kernels else "no native CPU kernels",
        ]
    )


def describe_model(config: TrainConfig, counts: Counts) -> str:
    """Size and kind of the network."""
    model = config.model
    lines = [
        f"{config.name}  {format_count(counts.total)} parameters: "
        f"{format_count(counts.ternary)} ternary, {format_count(counts.full)} float, "
        f"{format_count(counts.fast)} initial fast weights  "
        f"({format_bytes(counts.packed_bytes)} packed)",
        f"{model.num_layers} blocks of {_mixers(model)}, width {model.dim}, "
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
    """Text and tokens."""
    train, held_out = data.train, data.validation
    sources = ", ".join(source.path for source in config.sources)
    tokens = config.batch_size * config.seq_len
    text = (
        f"{sources}  {format_count(train.num_tokens)} tokens of "
        f"{train.text_bytes / train.num_tokens:.2f} bytes to train on, "
        f"{format_count(held_out.num_tokens) if held_out else 'nothing'} held out"
    )
    if train.num_predictions < train.num_tokens:
        text += f"; of those to train on {format_count(train.num_predictions)} count, in replies"
    steps = train.num_tokens / tokens
    return f"{text}\n{steps:{',.0f' if steps >= 100 else '.3g'}} steps an epoch"


def describe_optimizer(config: TrainConfig) -> str:
    """Batches, optimizer and length of the run."""
    optim, data = config.optim, config.data
    tokens = data.batch_size * data.seq_len
    parts = f" in {optim.accumulation} parts" if optim.accumulation > 1 else ""
    return (
        f"{optim.name}, lr {optim.lr:g} {optim.schedule}, warm-up {optim.warmup_steps:,}\n"
        f"batch {data.batch_size} x {data.seq_len} = {tokens:,} tokens{parts}, "
        f"{config.steps:,} steps, {format_count(config.steps * tokens)} tokens in all"
    )


def describe_mesh(mesh: Mesh, config: TrainConfig) -> str:
    """Devices, and what each of them gets of a batch."""
    axes = " ".join(f"{name}={size}" for name, size in mesh.shape.items())
    shards = mesh.shape["data"] * mesh.shape["fsdp"]
    rows = config.data.batch_size // config.optim.accumulation // shards
    return (
        f"{axes}  on {mesh.size} x {mesh.devices.flat[0].device_kind}, {rows} rows at once a device"
        f"\n{describe_process()}, host memory {format_memory(psutil.virtual_memory().total)}"
    )


def describe_memory(compiled: Compiled) -> str:
    """What a device holds during a step."""
    kind = "compiled for CPU, " if jax.default_backend() == "cpu" else ""
    return (
        f"{format_memory(compiled.state_bytes + compiled.temporary_bytes)} a device ({kind}"
        f"estimated): {format_memory(compiled.state_bytes)} of parameters and moments, "
        f"{format_memory(compiled.temporary_bytes)} during a step"
    )
