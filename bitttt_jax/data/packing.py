"""Rows of a fixed length cut out of documents that lie one after another.

In the virtual stream of a shard every document starts at a multiple of `align` (the mini-batch
of TTT, which must not hold tokens of two documents); the places between are padding. Windows of
`seq_len` of that stream are the rows. Nothing of it is stored: it follows from the offsets.
"""

from __future__ import annotations

from typing import TypedDict

import numpy as np

from bitttt_jax.data.shards import TokenShard

NOT_COUNTED = -1
"""Target of a prediction that doesn't count for the loss."""


class Row(TypedDict):
    """One window, int32 arrays [T]."""

    tokens_T: np.ndarray
    """Inputs; 0 at padding."""
    targets_T: np.ndarray
    """The token after each input, eos after a document's last; `NOT_COUNTED` where the prediction
    of it doesn't count; 0 at padding."""
    segment_ids_T: np.ndarray
    """Documents in the row counted from 1; 0 at padding."""
    positions_T: np.ndarray
    """Place in the document or, if that began in an earlier row, in this one's part of it."""


class PackedShard:
    """The windows of one shard, by index.

    Args:
      shard: tokens and document offsets.
      seq_len: length of a window, a multiple of `align`.
      align: documents start at multiples of this.
      eos_id: target of a document's last token.
    """

    def __init__(self, shard: TokenShard, *, seq_len: int, align: int, eos_id: int):
        self._shard, self._seq_len, self._eos_id = shard, seq_len, eos_id
        lengths = np.diff(shard.offsets.astype(np.int64))
        ends = np.cumsum(-(-lengths // align) * align)
        # Where each document starts in the stream.
        self._starts = np.concatenate([[0], ends[:-1]])
        self._length = -(-int(self._starts[-1] + lengths[-1]) // seq_len)

    def __len__(self) -> int:
        return self._length

    def __getitem__(self, index: int) -> Row:
        low = index * self._seq_len
        first = np.searchsorted(self._starts, low, side="right") - 1
        last = np.searchsorted(self._starts, low + self._seq_len, side="left")
        starts = self._starts[first:last] - low
        offsets = self._shard.offsets[first : last + 1].astype(np.int64)
        ends = starts + np.diff(offsets)
        if ends[0] <= 0:  # the window starts in the padding after this document
            starts, ends, offsets = starts[1:], ends[1:], offsets[1:]

        # Each document's part of the window, and of the tokens, which have no gaps between.
        begins, stops = np.maximum(starts, 0), np.minimum(ends, self._seq_len)
        counts = stops - begins
        origin = int(offsets[0] + begins[0] - starts[0])
        total = int(counts.sum())
        tokens = self._shard.tokens[origin : origin + total + 1].astype(np.int32)
        positions = np.arange(total) - np.repeat(np.cumsum(counts) - counts, counts)
        places = positions + np.repeat(begins, counts)

        row = empty_row(self._seq_len)
        row["tokens_T"][places] = tokens[:total]
        row["targets_T"][places[: len(tokens) - 1]] = tokens[1:]
        row["targets_T"][ends[ends <= self._seq_len] - 1] = self._eos_id
        if self._shard.mask is not None:
            is_counted = self._shard.mask[origin : origin + total]
            row["targets_T"][places[is_counted == 0]] = NOT_COUNTED
        row["segment_ids_T"][places] = np.repeat(np.arange(1, len(counts) + 1), counts)
        row["positions_T"][places] = positions
        return row


def empty_row(seq_len: int) -> Row:
    """A row of padding."""
    zeros = [np.zeros(seq_len, np.int32) for _ in range(4)]
    return Row(tokens_T=zeros[0], targets_T=zeros[1], segment_ids_T=zeros[2], positions_T=zeros[3])
