from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from bitttt_jax.config import DataConfig
from bitttt_jax.data.batches import Batch, Batches
from bitttt_jax.data.packing import PackedShard, Row
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import TokenDataset
from bitttt_jax.errors import DataError

GOLDEN_ORDER = [208, 163, 83, 35, 92, 265, 118, 201]


@pytest.fixture
def folder(tmp_path: Path, corpus: Path, data_config: Callable[..., DataConfig]) -> Path:
    prepare(data_config(corpus), tmp_path / "tokens")
    return tmp_path / "tokens"


def open_batches(folder: Path, split: Any = "train", **settings: Any) -> Batches:
    return Batches(
        folder, split, **{"seq_len": 64, "batch_size": 8, "seed": 3, "align": 16, **settings}
    )


def assert_same(a: Batch, b: Batch, rows: slice = slice(None)) -> None:
    for name, array in a.items():
        np.testing.assert_array_equal(array, b[name][rows])  # type: ignore[literal-required]


def row_counts(batches: list[Batch]) -> collections.Counter[bytes]:
    return collections.Counter(row.tobytes() for b in batches for row in b["tokens_BT"])


def test_shape_and_type(folder: Path) -> None:
    batch = open_batches(folder).batch(0)
    assert set(batch) == {"tokens_BT", "targets_BT", "segment_ids_BT", "positions_BT"}
    for array in batch.values():
        assert isinstance(array, np.ndarray)
        assert array.shape == (8, 64) and array.dtype == np.int32


@pytest.mark.parametrize("align", [1, 4, 16])
@pytest.mark.parametrize("split", ["train", "validation"])
def test_every_token_is_predicted_once_an_epoch(folder: Path, split: Any, align: int) -> None:
    data = open_batches(folder, split, align=align)
    targets = [b["targets_BT"][b["segment_ids_BT"] > 0] for b in data.validation_windows()]
    (shard,) = TokenDataset.open(folder, split).sources[0].shards
    documents = np.split(shard.tokens, shard.offsets[1:-1].astype(int))
    due = np.concatenate([np.append(document[1:], 256) for document in documents])
    np.testing.assert_array_equal(np.concatenate(targets), due)
    assert data.num_tokens == len(due)
    assert data.text_bytes == len(due) - len(documents)


def test_documents_start_at_multiples_of_align(folder: Path) -> None:
    for batch in open_batches(folder).validation_windows():
        starts = (batch["segment_ids_BT"] > 0) & (batch["positions_BT"] == 0)
        assert not (np.nonzero(starts)[1] % 16).any()
        padding = batch["segment_ids_BT"] == 0
        for array in (batch["tokens_BT"], batch["targets_BT"], batch["positions_BT"]):
            assert not array[padding].any()


def test_batches_are_a_function_of_seed_and_step(folder: Path) -> None:
    data = open_batches(folder)
    batches = [data.batch(step) for step in range(5)]
    assert_same(open_batches(folder).batch(4), batches[4])
    assert_same(data.batch(1), batches[1])
    assert (open_batches(folder, seed=4).batch(0)["tokens_BT"] != batches[0]["tokens_BT"]).any()


def test_order_is_the_one_of_earlier_versions(folder: Path) -> None:
    """A run resumed after an upgrade of grain or of this package goes on with the same data."""
    data = open_batches(folder)
    windows = [w for b in data.validation_windows() for w in b["tokens_BT"]][: data.num_windows]
    number = {window.tobytes(): index for index, window in enumerate(windows)}
    assert [number[row.tobytes()] for row in data.batch(0)["tokens_BT"]] == GOLDEN_ORDER


def test_hosts_see_the_rows_of_one_batch(folder: Path) -> None:
    data = open_batches(folder)
    whole = data.batch(7)
    for rows in (slice(0, 4), slice(6, 8), slice(None), slice(3, 3)):
        assert_same(data.batch(7, rows), whole, rows)
    assert_same(data.batch(7, range(2, 5)), whole, slice(2, 5))
    full = list(data.validation_windows())
    for part, batch in zip(data.validation_windows(slice(5, 8)), full, strict=True):
        assert_same(part, batch, slice(5, 8))
    with pytest.raises(ValueError, match="leaves the 8 rows"):
        data.batch(0, range(6, 9))


def test_only_the_rows_asked_for_are_read(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    data = open_batches(folder)
    reads = []
    original = PackedShard.__getitem__

    def counted(self: PackedShard, index: int) -> Row:
        reads.append(index)
        return original(self, index)

    monkeypatch.setattr(PackedShard, "__getitem__", counted)
    data.batch(0, range(3, 5))
    assert len(reads) == 2


def test_an_epoch_has_every_window_once_and_the_next_another_order(folder: Path) -> None:
    data = open_batches(folder, batch_size=1)
    count = data.num_windows
    first = [data.batch(step) for step in range(count)]
    second = [data.batch(step) for step in range(count, 2 * count)]
    expected = row_counts(list(data.validation_windows()))
    assert row_counts(first) == row_counts(second) == expected
    assert sum(expected.values()) == count
    assert [b["tokens_BT"].tobytes() for b in first] != [b["tokens_BT"].tobytes() for b in second]


def test_fewer_windows_than_rows_are_repeated(
    tmp_path: Path, data_config: Callable[..., DataConfig]
) -> None:
    (tmp_path / "a.txt").write_text("a" * 100)
    prepare(data_config(tmp_path / "a.txt", validation_fraction=0.0), tmp_path / "tokens")
    data = open_batches(tmp_path / "tokens")
    assert data.num_windows == 2
    assert sorted(row_counts([data.batch(0)]).values()) == [4, 4]


def test_validation_windows_end_with_rows_of_padding(folder: Path) -> None:
    data = open_batches(folder, "validation", batch_size=5)
    batches = list(data.validation_windows())
    assert len(batches) == data.num_validation_batches
    assert data.num_windows % 5  # or this tests nothing
    used = np.concatenate([batch["segment_ids_BT"].any(axis=1) for batch in batches])
    assert used.tolist() == [True] * data.num_windows + [False] * (5 - data.num_windows % 5)


def test_sources_are_mixed_by_weight(
    tmp_path: Path, corpus: Path, data_config: Callable[..., DataConfig]
) -> None:
    other = tmp_path / "other.txt"
    other.write_text("Z" * 500)
    config = data_config(corpus, other, validation_fraction=0.0)
    light, heavy = config.sources
    config = dataclasses.replace(config, sources=(light, dataclasses.replace(heavy, weight=3.0)))
    prepare(config, tmp_path / "tokens")
    data = open_batches(tmp_path / "tokens", batch_size=100)
    for step in (0, 5):
        rows = data.batch(step)["tokens_BT"]
        assert ((rows == ord("Z")).sum(axis=1) > 0).sum() == 75
    windows = np.concatenate([b["tokens_BT"] for b in data.validation_windows()])
    assert ((windows == ord("Z")).sum(axis=1) > 0).sum() == 8


def test_several_shards(
    folder: Path,
    tmp_path: Path,
    corpus: Path,
    monkeypatch: pytest.MonkeyPatch,
    data_config: Callable[..., DataConfig],
) -> None:
    monkeypatch.setattr("bitttt_jax.data.shards._SHARD_TOKENS", 2000)
    prepare(data_config(corpus), tmp_path / "sharded")
    assert len(TokenDataset.open(tmp_path / "sharded", "train").sources[0].shards) > 3
    one, several = open_batches(folder), open_batches(tmp_path / "sharded")
    targets = [
        np.concatenate([b["targets_BT"][b["segment_ids_BT"] > 0] for b in d.validation_windows()])
        for d in (one, several)
    ]
    np.testing.assert_array_equal(targets[0], targets[1])
    assert several.num_windows > one.num_windows


def test_unusable_arguments(folder: Path) -> None:
    with pytest.raises(ValueError, match="multiple of align"):
        open_batches(folder, align=48)
    with pytest.raises(DataError, match="no prepared tokens"):
        open_batches(folder / "nowhere")
