"""Batches as a pure function of (seed, step), whoever asks and for whichever rows.

Row r of step s is item s * batch_size + r of an endless order: windows shuffled anew each epoch,
sources mixed by weight. So a resumed run needs no loader state beyond the step, and any number
of hosts, each reading only its rows, sees the same global batch.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypedDict

import numpy as np

from bitttt_jax.data.manifest import Split
from bitttt_jax.data.packing import PackedShard, Row, empty_row
from bitttt_jax.data.shards import TokenDataset

if TYPE_CHECKING:
    import grain


class Batch(TypedDict):
    """Rows of `packing.Row`, int32 arrays [rows, seq_len]."""

    tokens_BT: np.ndarray
    """Inputs; 0 at padding."""
    targets_BT: np.ndarray
    """The token after each input, eos after a document's last; -1 (`packing.NOT_COUNTED`) where the
    prediction of it doesn't count for the loss; 0 at padding."""
    segment_ids_BT: np.ndarray
    """Documents of a row counted from 1; 0 at padding, where nothing may be learned."""
    positions_BT: np.ndarray
    """Place in the segment, from 0."""


class Batches:
    """Random access to the batches of one split of prepared data.

    Args:
      folder: a folder made by `prepare`.
      split: `train` or `validation`.
      seq_len: tokens of a row.
      batch_size: rows of a step over all hosts.
      seed: any number from 0 on; the order depends on it.
      align: documents start at multiples of this in a row (the TTT mini-batch); divides seq_len.

    Raises:
      DataError: the folder is missing or damaged, or the split has no documents.
    """

    def __init__(
        self,
        folder: str | Path,
        split: Split,
        *,
        seq_len: int,
        batch_size: int,
        seed: int,
        align: int = 1,
    ):
        if seq_len % align:
            raise ValueError(f"seq_len={seq_len} must be a multiple of align={align}")
        self._dataset = TokenDataset.open(folder, split)
        self._seq_len, self._batch_size, self._seed = seq_len, batch_size, seed
        eos_id = self._dataset.manifest.eos_id
        self._sources = [
            _Windows(
                [
                    PackedShard(shard, seq_len=seq_len, align=align, eos_id=eos_id)
                    for shard in source.shards
                ]
            )
            for source in self._dataset.sources
        ]

    @property
    def num_windows(self) -> int:
        """Rows that hold every document once."""
        return sum(map(len, self._sources))

    @property
    def num_tokens(self) -> int:
        """Tokens in those rows, padding apart; after each stands a prediction."""
        return self._dataset.tokens

    @property
    def text_bytes(self) -> int:
        """UTF-8 bytes of the documents."""
        return self._dataset.text_bytes

    @property
    def bytes_per_prediction(self) -> float:
        """UTF-8 bytes of text for each prediction that counts: what bits per byte are divided by.

        Of conversations both are of the replies alone; a token that ends one has no bytes.
        """
        return self.predicted_bytes / max(self.num_predictions, 1)

    @property
    def num_predictions(self) -> int:
        """Predictions that count for the loss, an eos per document of text included."""
        return self._dataset.predictions

    @property
    def predicted_bytes(self) -> int:
        """UTF-8 bytes of the text that these predict."""
        return self._dataset.predicted_bytes

    def batch(self, step: int, rows: slice | range = slice(None)) -> Batch:
        """Reads rows of the shuffled, endless order.

        Args:
          step: any number from 0 on.
          rows: the wanted rows of the global batch; the others aren't read.
        """
        first = step * self._batch_size
        return _stack([self._order[first + row] for row in self._range(rows)], self._seq_len)

    @property
    def num_validation_batches(self) -> int:
        """Batches of `validation_windows`."""
        return -(-self.num_windows // self._batch_size)

    def validation_windows(self, rows: slice | range = slice(None)) -> Iterator[Batch]:
        """All windows in order, each once; the last batch is filled up with rows of padding.

        Args:
          rows: the wanted rows of each global batch; the others aren't read.
        """
        windows = _Windows(self._sources)
        for first in range(0, len(windows), self._batch_size):
            indices = [first + row for row in self._range(rows)]
            yield _stack(
                [windows[i] if i < len(windows) else empty_row(self._seq_len) for i in indices],
                self._seq_len,
            )

    @functools.cached_property
    def _order(self) -> grain.MapDataset[Row]:
        import grain  # takes a second

        # grain's epoch e shuffles with seed + e: seeds of sources and runs must lie far apart.
        seeds = np.random.SeedSequence(self._seed).generate_state(len(self._sources))
        shuffled = [
            grain.MapDataset.source(source).shuffle(seed=int(seed)).repeat()
            for source, seed in zip(self._sources, seeds, strict=True)
        ]
        return grain.MapDataset.mix(shuffled, [source.weight for source in self._dataset.sources])

    def _range(self, rows: slice | range) -> range:
        if isinstance(rows, slice):
            return range(self._batch_size)[rows]
        if any(not 0 <= row < self._batch_size for row in rows):
            raise ValueError(f"{rows} leaves the {self._batch_size} rows of a batch")
        return rows


class _Windows:
    """The windows of several shards or sources, one after another."""

    def __init__(self, parts: list[PackedShard] | list[_Windows]):
        self._parts = parts
        self._ends = list(itertools.accumulate(map(len, parts)))

    def __len__(self) -> int:
        return self._ends[-1]

    def __getitem__(self, index: int) -> Row:
        part = bisect.bisect_right(self._ends, index)
        return self._parts[part][index - (self._ends[part - 1] if part else 0)]


def _stack(rows: list[Row], seq_len: int) -> Batch:
    def stack(columns: list[np.ndarray]) -> np.ndarray:
        return np.array(columns, np.int32).reshape(-1, seq_len)  # also if there are no rows

    return Batch(
        tokens_BT=stack([row["tokens_T"] for row in rows]),
        targets_BT=stack([row["targets_T"] for row in rows]),
        segment_ids_BT=stack([row["segment_ids_T"] for row in rows]),
        positions_BT=stack([row["positions_T"] for row in rows]),
    )
