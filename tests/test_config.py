from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bitttt_jax.config import (
    DataConfig,
    MeshConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TernaryConfig,
    TokenizerConfig,
    TrainConfig,
    TTTConfig,
)
from bitttt_jax.config_loading import describe
from bitttt_jax.errors import ConfigError, ExitCode


@pytest.mark.parametrize(
    ("make", "names"),
    [
        (lambda: TernaryConfig(activations=False), ["ternary.activations", "ternary.path"]),
        (lambda: TernaryConfig(warmup_steps=9), ["ternary.warmup_steps", "ternary.path"]),
        (lambda: TTTConfig(mini_batch=0), ["ttt.mini_batch", "0"]),
        (lambda: ModelConfig(num_layers=3, mixers=("attention", "ttt_mlp")), ["num_layers", "3"]),
        (lambda: ModelConfig(mixers=()), ["model.mixers"]),
        (lambda: ModelConfig(dim=100, num_heads=3), ["model.dim", "100", "model.num_heads", "3"]),
        (lambda: ModelConfig(num_kv_heads=3), ["model.num_kv_heads", "3"]),
        (lambda: ModelConfig(head_dim=5), ["model.head_dim", "5"]),
        (lambda: ModelConfig(dim=20, num_heads=4), ["head width 5"]),
        (lambda: SourceConfig(weight=0), ["data.sources.weight"]),
        (lambda: TokenizerConfig(kind="file"), ["tokenizer.path", "kind=file"]),
        (lambda: TokenizerConfig(kind="bpe", vocab_size=256), ["vocab_size", "256"]),
        (lambda: DataConfig(sources=()), ["data.sources"]),
        (lambda: DataConfig(validation_fraction=1.0), ["validation_fraction"]),
        (lambda: OptimConfig(lr=0.0), ["optim.lr"]),
        (lambda: MeshConfig(data=0), ["mesh.data"]),
        (lambda: TrainConfig(steps=0), ["config.steps"]),
        (lambda: TrainConfig(steps=10), ["optim.warmup_steps=100", "steps=10"]),
        (
            lambda: TrainConfig(optim=OptimConfig(accumulation=3)),
            ["batch_size=4", "accumulation=3"],
        ),
    ],
)
def test_contradiction_names_the_keys_and_values(make: Any, names: list[str]):
    with pytest.raises(ConfigError) as caught:
        make()
    assert all(name in str(caught.value) for name in names)
    assert caught.value.exit_code == ExitCode.USAGE


def test_sequence_must_hold_whole_mini_batches_only_with_ttt():
    data = DataConfig(seq_len=40)
    TrainConfig(data=data)
    with pytest.raises(ConfigError, match=r"data\.seq_len=40.*model\.ttt\.mini_batch=16"):
        TrainConfig(data=data, model=ModelConfig(mixers=("ttt_linear",)))


def test_derived_sizes():
    model = ModelConfig(
        dim=96, num_layers=6, num_heads=6, num_kv_heads=2, mixers=("attention",) * 3
    )
    assert (model.kv_heads, model.width_per_head, model.num_groups) == (2, 16, 2)
    assert not model.uses_ttt
    assert dataclasses.replace(model, mixers=("attention", "ttt_mlp")).uses_ttt


def test_every_key_has_help():
    assert [key.name for key in describe(TrainConfig()) if not key.help] == []
