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
from bitttt_jax.inference import packed_model, steps
from bitttt_jax.inference.sampling import RowSampling, SamplingConfig
from bitttt_jax.models import packed, parameters
from bitttt_jax.models.packed import TableType
from bitttt_jax.models.transformer import ModelState
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
            is_norm = leaf.ndim > 0 and not parameters.is_table(path.removesuffix("/scale"))
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
    if not config.tie_embeddings:
        counts["tables"] = packed.byte_counts({"head": params["head"]})["tables"]
    attention = config.num_groups * config.mixers.count("attention")
    seen = min(context, config.window) if config.window else context
    width = config.kv_heads * config.width_per_head * jnp.dtype(config.compute_dtype).itemsize
    return sum(counts.values()) + 2 * attention * seen * width * batch


def state_bytes(config: ModelConfig, params: Any, context: int, batch: int) -> int:
    """Bytes of the state, caches included, with which sequences of some tokens are read."""
    slots = steps.cache_slots(config, context)
    state = jax.eval_shape(lambda params: steps.start(config, params, batch, slots), params)
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
    """Time from a prompt of some tokens a row to the first new one, compiled."""
    slots = steps.cache_slots(config, tokens)
    token_BT = _tokens(config, batch, tokens)

    def run() -> Any:
        state = _read(config, params, token_BT[:, :-1], slots)
        return _writer(config, params, state)(token_BT[:, -1], 1)

    return Seconds.of(_times(run, repeats))


def decode_seconds(
    config: ModelConfig, params: Any, context: int, batch: int, count: int
) -> Seconds:
    """Mean time of a step in each call of generation, greedy, after some tokens were read."""
    slots = steps.cache_slots(config, context + count + 2)
    state = _read(config, params, _tokens(config, batch, context), slots)
    write, token_B = _writer(config, params, state), np.zeros(batch, np.int32)

    def seconds_of(count: int) -> float:
        nonlocal token_B
        start = time.perf_counter()
        token_B = np.asarray(write(token_B, count))[count - 1]
        return (time.perf_counter() - start) / count

    seconds_of(1)  # compiles
    together = min(steps.tokens_per_call(seconds_of(1)), max(count // 2, 1))
    return Seconds.of([seconds_of(together) for _ in range(count // together)])


def _read(config: ModelConfig, params: Any, token_BT: np.ndarray, slots: int) -> ModelState:
    """The state after some tokens of each row."""
    batch, length = token_BT.shape
    state = steps.start(config, params, batch, slots)
    for first in range(0, length, steps.PREFILL_TOKENS):
        part = token_BT[:, first : first + steps.PREFILL_TOKENS]
        count = np.full(batch, part.shape[1], np.int32)
        padded = np.zeros((batch, steps.padded_length(part.shape[1])), np.int32)
        padded[:, : part.shape[1]] = part
        state = steps.read_tokens(config, params, state, padded, count)
    return state


def _writer(
    config: ModelConfig, params: Any, state: ModelState
) -> Callable[[np.ndarray, int], jax.Array]:
    """A function from the rows' latest tokens and a count to the greedy tokens `[N, B]` after."""
    batch = state.position_B.shape[0]
    rows = steps.Rows(
        RowSampling.of([SamplingConfig(temperature=0)] * batch),
        np.zeros(batch, np.uint32),
        np.full((batch, 1), -1, np.int32),
    )
    rows, seen_BV = jax.device_put(rows), jnp.zeros((batch, config.vocab_size), bool)
    left_B = jax.device_put(np.full(batch, 2**30, np.int32))

    def write(token_B: np.ndarray, count: int) -> jax.Array:
        nonlocal state, seen_BV
        written, state, seen_BV = steps.write_tokens(
            config,
            config.vocab_size,
            False,
            params,
            state,
            seen_BV,
            rows,
            token_B,
            left_B,
            count,
            batch,
        )
        return written.token_NB

    return write


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
