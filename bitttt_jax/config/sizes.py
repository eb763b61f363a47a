"""The size dial: one number of parameters that sets width, depth, learning rate and batch."""

from __future__ import annotations

import dataclasses
import itertools
import math
import re

from bitttt_jax.config.model import VOCAB_MULTIPLE, Mixer, ModelConfig
from bitttt_jax.config.run import TokenizerConfig, TrainConfig
from bitttt_jax.errors import ConfigError


@dataclasses.dataclass(frozen=True)
class Size:
    """A place on the dial."""

    name: str
    """As `--size` takes it."""
    label: str
    parameters: int
    """What models of this size have, more or less."""


SIZES = (
    Size("1m", "1 M", 10**6),
    Size("3m", "3 M", 3 * 10**6),
    Size("10m", "10 M", 10**7),
    Size("30m", "30 M", 3 * 10**7),
    Size("100m", "100 M", 10**8),
    Size("300m", "300 M", 3 * 10**8),
    Size("1b", "1 B", 10**9),
)

_UNITS = {"": 1.0, "k": 1e3, "m": 1e6, "b": 1e9}
# From 256 on, widths in whole blocks of GGUF's ternary types; the kernels want half of that.
_WIDTHS = (64, 128, 192, *range(256, 8193, 256))
_BLOCK, _SMALL_BLOCK = 256, 32
_HEAD, _SMALL_HEAD = 64, 32
_MLP_RATIO = 8 / 3
_ASPECT = 64  # width of a block by the number of blocks, as in the smaller models of the papers
_ASPECT_WEIGHT, _LEAST_ASPECT = 0.1, 8
_FARTHEST = 1.3  # from the number asked for
# Learning rates of the TTT paper's models, from 125M to 1.3B parameters, follow this power; the
# highest is the quickstart's.
_RATE_POWER, _HIGHEST_RATE = -0.47, 6e-3
_BATCH_POWER = 0.25
_BYTE_TOKENS = 257
_UNKNOWN_TOKENS = 32_000  # a guess, for tokenizers in files


def parse_size(text: str) -> int:
    """The number of parameters that a text names.

    >>> parse_size("30m"), parse_size("1.3B"), parse_size("250_000")
    (30000000, 1300000000, 250000)

    Args:
      text: a number, with k, m or b for thousands, millions or billions.

    Raises:
      ConfigError: it isn't one, or not of a model.
    """
    found = re.fullmatch(r"(\d[\d_]*(?:\.\d+)?(?:e\d+)?)([kmb]?)", text.strip().lower())
    number = float(found[1]) * _UNITS[found[2]] if found else math.nan
    if not 1e5 <= number <= 1e11:
        raise ConfigError(
            f"{text!r} is no size of a model",
            "sizes are numbers of parameters from 100k to 100b",
            f"one of {', '.join(size.name for size in SIZES)}, or a number",
        )
    return round(number)


def resize(config: TrainConfig, size: int) -> TrainConfig:
    """Makes a configuration's model larger or smaller.

    Width, depth and heads are chosen so that the model, embeddings included, comes close to the
    size. The learning rate goes down with it and the batch slowly up, both from what they are in
    the configuration; so apply it to a preset, and changes of single values after it.

    Args:
      config: where mixers, text, tokenizer and everything else come from.
      size: number of parameters.

    Raises:
      ConfigError: no width and depth come near it.
    """
    best = min(_shapes(config, size), key=lambda model: _score(config, model, size))
    parameters = _count(config, best)
    if not 1 / _FARTHEST < parameters / size < _FARTHEST:
        raise ConfigError(
            f"there is no such model of {size:,} parameters",
            f"the nearest has {parameters:,}, {_vocabulary(config) * best.dim:,} of them for "
            f"{_vocabulary(config):,} tokens in the embedding",
            "another size, or another data.tokenizer",
        )
    growth = parameters / _count(config, config.model)
    highest = max(_HIGHEST_RATE, config.optim.lr)
    lr = min(highest, float(f"{config.optim.lr * growth**_RATE_POWER:.2g}"))
    return dataclasses.replace(
        config,
        model=best,
        data=dataclasses.replace(config.data, batch_size=_batch_size(config, growth)),
        optim=dataclasses.replace(config.optim, lr=lr),
    )


def _shapes(config: TrainConfig, size: int) -> list[ModelConfig]:
    """The model at every width, as deep as the size asks for, but no tower."""
    shapes = []
    for width in _WIDTHS:
        one, two = (_shape(config.model, width, groups) for groups in (1, 2))
        first, second = _count(config, one), _count(config, two)
        most = width // _LEAST_ASPECT // len(config.model.mixers)
        groups = min(1 + max(0, round((size - first) / (second - first))), max(most, 1))
        shapes.append(_shape(config.model, width, groups))
    return shapes


def _shape(model: ModelConfig, width: int, groups: int) -> ModelConfig:
    is_small = width < _BLOCK
    block = _SMALL_BLOCK if is_small else _BLOCK
    heads = width // (_SMALL_HEAD if is_small else _HEAD)
    shared = model.num_heads // model.kv_heads  # queries that share a key, as far as they divide
    return dataclasses.replace(
        model,
        dim=width,
        num_layers=groups * len(model.mixers),
        num_heads=heads,
        num_kv_heads=0 if shared == 1 else heads // math.gcd(heads, shared),
        head_dim=0,
        mlp_dim=block * math.ceil(_MLP_RATIO * width / block),
    )


def _score(config: TrainConfig, model: ModelConfig, size: int) -> float:
    """How far a shape is from the size, and from a usual proportion."""
    off = abs(math.log(_count(config, model) / size))
    return off + _ASPECT_WEIGHT * abs(math.log(model.dim / model.num_layers / _ASPECT))


def _batch_size(config: TrainConfig, growth: float) -> int:
    """Rows of a step: doubled or halved, as long as devices and parts can share them."""
    rows, power = config.data.batch_size, round(math.log2(growth) * _BATCH_POWER)
    shares = config.optim.accumulation * config.mesh.fsdp * max(config.mesh.data, 1)
    for _ in range(-power):
        if rows % (2 * shares):
            break
        rows //= 2
    return rows * 2 ** max(power, 0)


def _vocabulary(config: TrainConfig) -> int:
    """Rows of the embedding, as far as the configuration says them."""
    tokens = _tokens(config.data.tokenizer)
    return config.model.vocab_size or -(-tokens // VOCAB_MULTIPLE) * VOCAB_MULTIPLE


def _tokens(tokenizer: TokenizerConfig) -> int:
    sizes = {"bytes": _BYTE_TOKENS, "bpe": tokenizer.vocab_size, "file": _UNKNOWN_TOKENS}
    return sizes[tokenizer.kind]


def _count(config: TrainConfig, model: ModelConfig) -> int:
    return count_parameters(dataclasses.replace(model, vocab_size=_vocabulary(config)))


def count_parameters(model: ModelConfig) -> int:
    """Number of a model's parameters, by arithmetic alone.

    Args:
      model: its vocabulary size known.
    """
    mixers = itertools.chain.from_iterable(itertools.repeat(model.mixers, model.num_groups))
    blocks = sum(_block(model, mixer) for mixer in mixers)
    tables = model.vocab_size * model.dim * (1 if model.tie_embeddings else 2)
    return tables + blocks + model.dim


def _block(model: ModelConfig, mixer: Mixer) -> int:
    D, F, ternary = model.dim, model.mlp_dim, model.ternary
    is_ttt = mixer != "attention"
    bare = ternary.inner_norm and not ternary.outer_norm
    norms = D * (is_ttt or not (bare and ternary.mixer)) + D * (not (bare and ternary.mlp))
    if is_ttt and model.ttt.has_pre_conv:
        norms += D + (model.ttt.conv_width + 1) * D
    if model.norm_placement == "subln":
        norms += F + model.num_heads * model.width_per_head
    mlp = 3 * D * F + (2 * D + F) * (ternary.inner_norm and ternary.mlp)
    return norms + mlp + _mixer(model, mixer)


def _mixer(model: ModelConfig, mixer: Mixer) -> int:
    D, H, K = model.dim, model.num_heads, model.width_per_head
    if mixer == "attention":
        outputs = [H * K, model.kv_heads * K, model.kv_heads * K]
        rest = sum(outputs) if model.qkv_bias else 0
    else:
        outputs = [H * K] * (1 + (not model.ttt.shares_qk) + 1 + model.ttt.has_gate)
        rest = _learner(model, mixer)
    inner_norm = model.ternary.inner_norm and model.ternary.mixer
    norms = (len(outputs) * D + H * K) * inner_norm
    return D * sum(outputs) + H * K * D + norms + rest


def _learner(model: ModelConfig, mixer: Mixer) -> int:
    """What TTT has besides its projections."""
    D, H, K, ttt = model.dim, model.num_heads, model.width_per_head, model.ttt
    F = ttt.mlp_ratio * K
    fast = K * K + K if mixer == "ttt_linear" else 2 * K * F + F + K
    convolutions = 2 * (ttt.conv_width + 1) * H * K if ttt.shares_qk else 0
    learning_rate, norms = D * H + H, 2 * H * K + 2 * H * K
    return H * fast + convolutions + learning_rate + norms + ttt.mini_batch
