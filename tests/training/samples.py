"""Small configurations and batches for the tests of training."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np

from bitttt_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TernaryConfig,
    TrainConfig,
    TTTConfig,
)

BATCH, LENGTH = 8, 32


def make_config(
    *mixers: str,
    ternary: TernaryConfig | None = None,
    optim: dict[str, Any] | None = None,
    steps: int = 20,
    **model: Any,
) -> TrainConfig:
    """A model of a layer for each of the mixers, in float32."""
    mixers = mixers or ("attention",)
    sizes = {"vocab_size": 320, "dim": 32, "num_heads": 4, "mlp_dim": 64, "num_layers": len(mixers)}
    return TrainConfig(
        name="tiny",
        steps=steps,
        model=ModelConfig(
            **sizes | model,
            mixers=mixers,  # type: ignore[arg-type]
            compute_dtype="float32",
            ternary=ternary or TernaryConfig(),
            ttt=TTTConfig(mini_batch=8),
        ),
        data=DataConfig(seq_len=LENGTH, batch_size=BATCH),
        optim=OptimConfig(**{"lr": 3e-3, "warmup_steps": 2} | (optim or {})),
    )


def make_batch(seed: int, *, batch: int = BATCH, mini_batch: int = 8) -> dict[str, np.ndarray]:
    """Rows of two documents and of padding, whose lengths differ from row to row."""
    rng = np.random.default_rng(seed)
    tokens = rng.integers(0, 40, (batch, LENGTH + 1)) ** 2 % 257
    segments = np.zeros((batch, LENGTH), np.int32)
    positions = np.zeros((batch, LENGTH), np.int32)
    for row in range(batch):
        second = mini_batch * int(rng.integers(1, LENGTH // mini_batch))
        first_end = second - int(rng.integers(0, mini_batch))
        end = int(rng.integers(second, LENGTH + 1))
        for number, (low, high) in enumerate([(0, first_end), (second, end)], start=1):
            segments[row, low:high] = number
            positions[row, low:high] = np.arange(high - low)
    return {
        "tokens_BT": np.where(segments > 0, tokens[:, :-1], 0).astype(np.int32),
        "targets_BT": np.where(segments > 0, tokens[:, 1:], 0).astype(np.int32),
        "segment_ids_BT": segments,
        "positions_BT": positions,
    }


def masked(batch: dict[str, np.ndarray], seed: int) -> dict[str, np.ndarray]:
    """The batch with spans of its targets left out, and a row of which none counts."""
    rng = np.random.default_rng(seed)
    counts_BT = np.repeat(
        rng.integers(0, 2, (len(batch["targets_BT"]), LENGTH // 4)), 4, axis=1
    ).astype(bool)
    counts_BT[2] = False
    return batch | {"targets_BT": np.where(counts_BT, batch["targets_BT"], -1).astype(np.int32)}


def write_texts(folder: Path, count: int = 24) -> Path:
    """Writes documents of some hundred bytes, a file for each."""
    rng = np.random.default_rng(0)
    words = ["def", "return", "naïve", "x += 1", "日本語", "\n", "    ", "the", "cat"]
    folder.mkdir(parents=True)
    for number in range(count):
        text = f"{number}: " + " ".join(rng.choice(words, rng.integers(20, 120)))
        (folder / f"{number:02}.txt").write_text(text, encoding="utf-8")
    return folder


def make_run_config(text: Path, *mixers: str, **changes: Any) -> TrainConfig:
    """A short run over the documents of a folder."""
    config = make_config(*mixers)
    config = dataclasses.replace(
        config,
        steps=12,
        model=dataclasses.replace(config.model, vocab_size=0),
        data=dataclasses.replace(
            config.data, sources=(SourceConfig(path=str(text)),), validation_fraction=0.3
        ),
        checkpoint=CheckpointConfig(every_steps=4),
        eval=EvalConfig(every_steps=4, batches=1),
        log=LogConfig(every_steps=2, health_every_steps=0, tensorboard=False),
    )
    return dataclasses.replace(config, **changes)
