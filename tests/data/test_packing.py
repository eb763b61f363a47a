from __future__ import annotations

import random

import numpy as np
import pytest

from bitttt_jax.data.packing import PackedShard, empty_row
from bitttt_jax.data.shards import TokenShard

EOS = 9999


def make_shard(lengths: list[int]) -> TokenShard:
    """Documents 1000, 1001, ... 2000, 2001, ...: a token tells its document and its place."""
    documents = [1000 * (i + 1) + np.arange(length) for i, length in enumerate(lengths)]
    offsets = np.concatenate([[0], np.cumsum(lengths)]).astype("<u8")
    return TokenShard(np.concatenate(documents).astype("<u4"), offsets)


def reference_rows(lengths: list[int], seq_len: int, align: int) -> list[list[list[int]]]:
    """The four arrays of every row, built token by token."""
    stream: list[tuple[int, int, int]] = []  # token, target, document; 0, 0, 0 is padding
    for document, length in enumerate(lengths, start=1):
        while len(stream) % align:
            stream.append((0, 0, 0))
        for place in range(length):
            target = 1000 * document + place + 1 if place + 1 < length else EOS
            stream.append((1000 * document + place, target, document))
    while len(stream) % seq_len:
        stream.append((0, 0, 0))
    rows = []
    for low in range(0, len(stream), seq_len):
        row = stream[low : low + seq_len]
        segments: list[int] = []
        positions: list[int] = []
        seen: list[int] = []
        for _, _, document in row:
            if document and document not in seen:
                seen.append(document)
            segments.append(len(seen) if document else 0)
            same = [segment for segment in segments[:-1] if segment == segments[-1]]
            positions.append(len(same) if document else 0)
        rows.append([[t for t, _, _ in row], [t for _, t, _ in row], segments, positions])
    return rows


@pytest.mark.parametrize(
    ("lengths", "seq_len", "align"),
    [
        ([5, 3, 9], 4, 1),
        ([4, 4, 8], 4, 4),  # everything ends with a row
        ([1, 1, 1], 8, 2),
        ([30], 8, 4),
        ([5, 3], 8, 8),
        ([7, 1], 8, 2),  # the second row starts with a document
        ([9, 1, 1], 4, 2),  # a row starts where padding would have been
        ([1], 16, 16),
        ([13, 2], 8, 4),  # a document's last part and then padding at a row's start
    ],
)
def test_rows(lengths: list[int], seq_len: int, align: int) -> None:
    check(lengths, seq_len, align)


@pytest.mark.parametrize("seed", range(40))
def test_random_rows(seed: int) -> None:
    rng = random.Random(seed)
    align = rng.choice([1, 2, 4, 5])
    seq_len = align * rng.randint(1, 6)
    check([rng.randint(1, 25) for _ in range(rng.randint(1, 12))], seq_len, align)


def check(lengths: list[int], seq_len: int, align: int) -> None:
    shard = make_shard(lengths)
    packed = PackedShard(shard, seq_len=seq_len, align=align, eos_id=EOS)
    expected = reference_rows(lengths, seq_len, align)
    rows = [packed[index] for index in range(len(packed))]
    found = np.array([list(row.values()) for row in rows])
    assert found.dtype == np.int32
    np.testing.assert_array_equal(found, expected)
    # Every token is predicted once: all but the first of a document, and its end.
    targets = np.concatenate([row["targets_T"][row["segment_ids_T"] > 0] for row in rows])
    documents = np.split(shard.tokens, shard.offsets[1:-1].astype(int))
    due = np.concatenate([np.append(document[1:], EOS) for document in documents])
    np.testing.assert_array_equal(targets, due)


def test_empty_row() -> None:
    row = empty_row(3)
    row["tokens_T"][0] = 1  # not shared with the other arrays
    assert row["targets_T"].tolist() == row["segment_ids_T"].tolist() == [0, 0, 0]
