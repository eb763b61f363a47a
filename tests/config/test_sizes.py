from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bitttt_jax.config import (
    MeshConfig,
    ModelConfig,
    TernaryConfig,
    TokenizerConfig,
    TrainConfig,
    TTTConfig,
)
from bitttt_jax.config.sizes import SIZES, Size, count_parameters, parse_size, resize
from bitttt_jax.config_loading import difference, load_config, preset_names, with_vocabulary
from bitttt_jax.errors import ConfigError
from bitttt_jax.models.counts import count

TURNED = {
    "model.dim", "model.num_layers", "model.num_heads", "model.num_kv_heads", "model.head_dim",
    "model.mlp_dim", "optim.lr", "data.batch_size",
}  # fmt: skip

VARIANTS: list[dict[str, Any]] = [
    {"mixers": ("attention",), "num_kv_heads": 1, "qkv_bias": True, "tie_embeddings": False},
    {"mixers": ("attention", "ttt_mlp"), "norm_placement": "subln"},
    {"mixers": ("ttt_linear",), "ttt": TTTConfig(backbone="transformer", mini_batch=8)},
    {"mixers": ("ttt_mlp",), "ttt": TTTConfig(share_qk="off", mlp_ratio=2, conv_width=3)},
    {"mixers": ("ttt_linear",), "ttt": TTTConfig(pre_conv="off", gate="off"), "head_dim": 6},
    {"mixers": ("attention", "ttt_linear"), "ternary": TernaryConfig(inner_norm=True)},
    {
        "mixers": ("attention", "ttt_linear"),
        "ternary": TernaryConfig(inner_norm=True, outer_norm=True, mlp=False),
    },
    {"mixers": ("attention",), "ternary": TernaryConfig(inner_norm=True, mixer=False)},
]


@pytest.mark.parametrize("changes", VARIANTS, ids=str)
def test_arithmetic_counts_what_the_model_has(changes: dict[str, Any]):
    shape = {"vocab_size": 31, "dim": 12, "num_heads": 3, "mlp_dim": 20, "num_layers": 4}
    model = ModelConfig(**shape | changes)
    assert count_parameters(model) == count(model, 64).total


@pytest.mark.parametrize("name", preset_names())
def test_arithmetic_counts_the_presets(name: str):
    config = with_vocabulary(load_config(name), 257)
    assert count_parameters(config.model) == count(config.model, config.data.seq_len).total


@pytest.mark.parametrize("name", ["quickstart", "debug", "ttt_350m", "bitnet_700m"])
@pytest.mark.parametrize("size", SIZES[2:], ids=lambda size: size.name)
def test_every_preset_in_every_size(name: str, size: Size):
    before = load_config(name)
    after = resize(before, size.parameters)
    assert {key for key, _, _ in difference(before, after)} <= TURNED
    model = with_vocabulary(after, after.model.vocab_size or 2048).model
    assert count(model, 64).total == pytest.approx(size.parameters, rel=0.3)
    assert model.dim == model.num_heads * model.width_per_head
    if model.dim >= 256:
        assert model.dim % 256 == 0 == model.mlp_dim % 256
    assert model.dim >= 8 * model.num_layers


def test_small_models_need_a_small_vocabulary():
    small = resize(load_config("debug"), 10**6)
    assert count_parameters(with_vocabulary(small, 257).model) == pytest.approx(1e6, rel=0.3)
    with pytest.raises(ConfigError, match=r"no such model of 1,000,000 .*\n.* 32,000 tokens"):
        resize(load_config("ttt_125m"), 10**6)


def test_larger_models_learn_slower_from_larger_batches():
    before = load_config("ttt_125m")
    configs = [resize(before, size.parameters) for size in SIZES[2:]]
    rates = [config.optim.lr for config in configs]
    assert rates == sorted(rates, reverse=True) and rates[0] == 6e-3
    batches = [config.data.batch_size for config in configs]
    assert batches == sorted(batches)
    assert {batch.bit_count() for batch in batches} == {1}
    # The paper's own models: 3e-3 at 125M, 1e-3 at 1.3B parameters.
    assert resize(before, 1_300_000_000).optim.lr == pytest.approx(1e-3, rel=0.07)
    assert resize(before, 110_000_000).optim.lr == pytest.approx(3e-3, rel=0.05)


def test_rows_stay_divisible_among_parts_and_devices():
    before = load_config("ttt_1b3")
    parts = dataclasses.replace(before.optim, accumulation=8)
    devices = MeshConfig(data=2, fsdp=8)
    small = resize(dataclasses.replace(before, optim=parts, mesh=devices), 10_000_000)
    assert small.data.batch_size == 128  # a quarter of the rows is 64: less than a row each


def test_grouped_keys_stay_grouped():
    model = ModelConfig(num_heads=4, num_kv_heads=1, mixers=("attention",))
    grown = resize(TrainConfig(model=model), 30_000_000).model
    assert (grown.num_heads, grown.num_kv_heads) == (8, 2)


def test_the_tokenizer_decides_the_embedding():
    bpe = TokenizerConfig(kind="bpe", vocab_size=16_000)
    base = TrainConfig()
    large = dataclasses.replace(base, data=dataclasses.replace(base.data, tokenizer=bpe))
    # With a vocabulary of 0 only the blocks are counted.
    of_bytes, of_bpe = (count_parameters(resize(each, 10**7).model) for each in (base, large))
    assert of_bpe < 0.8 * of_bytes


@pytest.mark.parametrize(
    ("text", "number"),
    [("1m", 10**6), ("1.3B", 1_300_000_000), (" 300k", 300_000), ("3e7", 3 * 10**7),
     ("30_000_000", 3 * 10**7)],
)  # fmt: skip
def test_sizes_are_read(text: str, number: int):
    assert parse_size(text) == number


@pytest.mark.parametrize("text", ["", "m", "-3m", "0", "99", "1t", "1e99", "nan", "inf", "3 m m"])
def test_what_is_no_size(text: str):
    with pytest.raises(ConfigError, match="no size of a model"):
        parse_size(text)


def test_names_say_their_number():
    assert [parse_size(size.name) for size in SIZES] == [size.parameters for size in SIZES]
