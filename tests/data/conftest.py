from __future__ import annotations

import random
from collections.abc import Callable
from pathlib import Path

import pytest

from bitttt_jax.config import DataConfig, SourceConfig


@pytest.fixture
def texts() -> list[str]:
    """60 documents of 1 to 150 words, the same in every run."""
    rng = random.Random(0)
    words = ["the", "cat", "naïve", "reads", "日本語", "x += 1", "\n", "🎉", "tokens", "  "]
    return [
        f"{index}: " + " ".join(rng.choices(words, k=rng.randint(1, 150))) for index in range(60)
    ]


@pytest.fixture
def corpus(tmp_path: Path, texts: list[str]) -> Path:
    """A folder with a file per document, sorted in the order of `texts`."""
    folder = tmp_path / "corpus"
    folder.mkdir()
    for index, text in enumerate(texts):
        (folder / f"{index:03d}.txt").write_bytes(text.encode())
    return folder


@pytest.fixture
def data_config() -> Callable[..., DataConfig]:
    """Makes a DataConfig of sources at some paths."""

    def make(*paths: Path | str, **settings: object) -> DataConfig:
        sources = tuple(SourceConfig(path=str(path)) for path in paths)
        return DataConfig(sources=sources, **{"validation_fraction": 0.2, **settings})  # type: ignore[arg-type]

    return make
