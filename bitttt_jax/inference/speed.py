"""How fast a model reads and writes, beside what the machine's memory allows."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax import native
from bitttt_jax.config import ModelConfig
from bitttt_jax.data.memory import large_buffer
from bitttt_jax.data.safetensors import ALIGNMENT
from bitttt_jax.inference import generate, packed_model
from bitttt_jax.inference.sampling import SamplingConfig
from bitttt_jax.models import packed, parameters
from bitttt_jax.models.packed import TableType
from bitttt_jax.ops import tables
from bitttt_jax.ternary.matmul import matmul
from bitttt_jax.ternary.packing import PackedTernary

_CHUNK = 256 * 1024  # of the native kernel that reads memory
_MEMORY_BYTES = 512 * 2**20
_INIT_STD = 0.02


@dataclasses.dataclass(frozen=True)
class Seconds:
    """Repeated measurements of one thing."""

    median: float
    lower: float
    """First quartile."""
    upper: float
    """Third quartile."""
    count: int

    @classmethod
    def of(cls, values: list[float]) -> Seconds:
        """Summarises measurements, at least two."""
        lower, median, upper = statistics.quantiles(values, n=4, method="inclusive")
        return cls(median, lower, upper, len(values))


def random_params(config: ModelConfig, table: TableType, seed: int = 0) -> Any:
    """Packed parameters with random values, made without the latent ones.

    Args:
      config: the model's, its vocabulary size known.
      table: how the embedding and the output head are stored.
      seed: of the values.
    """
    packed.check_packable(config)
    rng = np.random.default_rng(seed)
    valid = np.array([c for c in range(256) if not c & c >> 1 & 0x55], np.uint8)

    def draw(path: str, leaf: jax.ShapeDtypeStruct) -> Any:
        if leaf.dtype == jnp.uint8:
            return valid[rng.integers(0, len(valid), leaf.shape, np.uint8)]
        if leaf.dtype == jnp.int8:
            return rng.integers(-127, 128, leaf.shape, np.int8)
        if path.endswith("scale"):
            is_norm = leaf.ndim > 0 and not path.startswith(("embed/", "head/"))
            return 1.0 if is_norm else _INIT_STD / 60
        if path.endswith("bias"):
            return 0.0
        return _INIT_STD * rng.standard_normal(leaf.shape, np.float32)

    abstract = packed_model.abstract_params(config, "i2_s", table)
    aligned = lambda leaf: -(-leaf.size * leaf.dtype.itemsize // ALIGNMENT) * ALIGNMENT
    memory, used = large_buffer(sum(map(aligned, jax.tree.leaves(abstract)))), 0

    def place(path: str, leaf: jax.ShapeDtypeStruct) -> jax.Array:
        nonlocal used
        piece = memory[used : used + leaf.size * leaf.dtype.itemsize]
        used += aligned(leaf)
        values = piece.view(leaf.dtype).reshape(leaf.shape)
        values[...] = draw(path, leaf)
        return packed_model.as_array(values)

    return jax.tree.map(place, parameters.leaf_paths(abstract), abstract)


def bytes_per_step(config: ModelConfig, params: Any, context: int, batch: int) -> int:
    """Bytes that a step must read: all weights but an untied embedding, and attention's caches."""
    counts = packed.byte_counts(params)
    head = params["embed"]["embedding"] if config.tie_embeddings else params["head"]["kernel"]
    if isinstance(head, tables.RefinedTable):
        head = head.coarse  # and a few of the other halves
    counts["tables"] = packed.byte_counts({"head": head})["tables"]
    attention = config.num_groups * config.mixers.count("attention")
    seen = min(context, config.window) if config.window else context
    width = config.kv_heads * config.width_per_head * jnp.dtype(config.compute_dtype).itemsize
    return sum(counts.values()) + 2 * attention * seen * width * batch


def state_bytes(config: ModelConfig, params: Any, context: int, batch: int) -> int:
    """Bytes of the state, caches included, with which sequences of some tokens are read."""
    slots = generate.cache_slots(config, context)
    state = jax.eval_shape(lambda params: generate.start(config, params, batch, slots), params)
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))


def memory_bandwidth(repeats: int = 7) -> float | None:
    """Bytes a second that all threads together read from memory; None without native kernels."""
    if native.choose("auto", True, "") != "cpu":
        return None
    values = large_buffer(_MEMORY_BYTES)
    values[:] = 1
    data = packed_model.as_array(values)
    result = jax.ShapeDtypeStruct((_MEMORY_BYTES // _CHUNK,), jnp.uint8)
    read = jax.jit(jax.ffi.ffi_call("bitttt_read_memory", result))
    return _MEMORY_BYTES / min(_times(lambda: read(data), repeats))


def product_seconds(weights: list[PackedTernary], rows: int, repeats: int = 7) -> Seconds:
    """Mean time of a product of some rows of activations with each of many weights, in turn.

    Args:
      weights: of equal shapes. For the speed of memory, many more than the caches hold.
      rows: of the activations.
      repeats: how often the sequence is measured.
    """
    x = jnp.asarray(np.random.default_rng(0).normal(size=(rows, weights[0].shape[0])), jnp.bfloat16)
    multiply = jax.jit(lambda x, weights: [matmul(x, [weight])[0] for weight in weights])
    times = _times(lambda: multiply(x, weights), repeats)
    return Seconds.of([seconds / len(weights) for seconds in times])


def packed_weights(params: Any) -> dict[tuple[int, int], list[PackedTernary]]:
    """All packed weights by their shape."""
    is_packed = lambda leaf: isinstance(leaf, PackedTernary)
    by_shape: dict[tuple[int, int], list[PackedTernary]] = {}
    for leaf in jax.tree.leaves(params, is_leaf=is_packed):
        if is_packed(leaf):
            by_shape.setdefault(leaf.shape, []).append(leaf)
    return by_shape


def prefill_seconds(
    config: ModelConfig, params: Any, tokens: int, batch: int, repeats: int = 5
) -> Seconds:
    """Time from a prompt of some tokens a row to the logits of the first new one, compiled."""
    slots = generate.cache_slots(config, tokens)
    token_BT, length_B = _tokens(config, batch, tokens), np.full(batch, tokens)

    def run() -> Any:
        state = generate.start(config, params, batch, slots)
        return generate.read_tokens(config, params, state, token_BT, length_B)[0]

    return Seconds.of(_times(run, repeats))


def decode_seconds(
    config: ModelConfig, params: Any, context: int, batch: int, steps: int
) -> Seconds:
    """Mean time of a step in each call of generation, greedy, after some tokens were read."""
    state = generate.start(config, params, batch, generate.cache_slots(config, context + steps + 2))
    for first in range(0, context, generate.PREFILL_TOKENS):
        count = min(generate.PREFILL_TOKENS, context - first)
        token_BT = _tokens(config, batch, count)
        _, state = generate.read_tokens(config, params, state, token_BT, np.full(batch, count))
    fixed = (config, SamplingConfig(temperature=0), config.vocab_size, params)
    key, stop = jax.random.key(0), np.zeros(0, np.int32)
    token_B = jnp.zeros(batch, jnp.int32)

    def seconds_of(count: int) -> float:
        nonlocal state, token_B
        start = time.perf_counter()
        token_NB, _, state = generate.write_tokens(*fixed, state, token_B, key, stop, count)
        token_B = jax.block_until_ready(token_NB)[count - 1]
        return (time.perf_counter() - start) / count

    seconds_of(1)  # compiles
    count = min(generate.tokens_per_call(seconds_of(1)), max(steps // 2, 1))
    return Seconds.of([seconds_of(count) for _ in range(steps // count)])


def _tokens(config: ModelConfig, batch: int, count: int) -> np.ndarray:
    return np.random.default_rng(0).integers(0, config.vocab_size, (batch, count), np.int32)


def _times(run: Callable[[], Any], repeats: int) -> list[float]:
    """Seconds of each call after two that compile and warm up."""
    times = []
    for _ in range(repeats + 2):
        start = time.perf_counter()
        jax.block_until_ready(run())
        times.append(time.perf_counter() - start)
    return times[2:]
