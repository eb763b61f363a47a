"""Reading one sequence in whole mini-batches, while watching what the inner learning gains."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator

import numpy as np

from bitttt_jax.inference import steps
from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.prefixes import SavedState


@dataclasses.dataclass(frozen=True)
class InnerLosses:
    """The inner loss of a mini-batch, averaged over its tokens and the heads."""

    position: int
    """Tokens of the sequence that are read with this mini-batch."""
    layers: tuple[tuple[float, float, float], ...]
    """Of each TTT layer: at the initial fast weights, at those before the mini-batch, and at those
    after it."""

    @property
    def means(self) -> tuple[float, float, float]:
        """Averages over the layers."""
        initial, current, updated = np.mean(self.layers, axis=0).tolist()
        return initial, current, updated


class Reader:
    """Reads a sequence that grows, of a model with TTT mixers.

    It reads whole mini-batches only, so that each is seen at once however the sequence grows. What
    it has read can be kept by the engine, whose requests then go on from there.

    Args:
      engine: runs the model.
      saved: what was read before, up to the end of a mini-batch; None for nothing.
    """

    def __init__(self, engine: Engine, saved: SavedState | None = None):
        self._engine = engine
        self._mini_batch = engine.config.ttt.mini_batch
        if saved is not None and len(saved.token_T) % self._mini_batch:
            raise ValueError(f"{len(saved.token_T)} tokens aren't whole mini-batches")
        self._saved = saved

    @property
    def saved(self) -> SavedState:
        """What has been read, and the state after it."""
        if self._saved is None:
            self._saved = self._engine.start(0)
        return self._saved

    def forget(self) -> None:
        """Begins anew."""
        self._saved = None

    def read(self, token_T: np.ndarray) -> Iterator[list[InnerLosses]]:
        """Reads a sequence up to its last whole mini-batch; what it has read needn't be read again.

        Args:
          token_T: the sequence from its beginning. One that doesn't begin with what was read is
            read anew.

        Yields:
          After each call of the model, the losses of the mini-batches that it has read.
        """
        b = self._mini_batch
        if not np.array_equal(self.saved.token_T, token_T[: len(self.saved.token_T)]):
            self.forget()
        most = max(steps.PREFILL_TOKENS // b, 1) * b
        while (count := min((len(token_T) - len(self.saved.token_T)) // b * b, most)) > 0:
            yield self._read_some(token_T, count)

    def _read_some(self, token_T: np.ndarray, count: int) -> list[InnerLosses]:
        model, begin = self._engine.model, len(self.saved.token_T)
        before = self._engine.start(len(token_T), self.saved)
        part_BT = np.zeros((1, steps.padded_length(count)), np.int32)
        part_BT[0, :count] = token_T[begin : begin + count]
        length_B = np.array([count], np.int32)
        losses_LBN3, state = steps.read_observed(
            self._engine.config, model.params, before.state, part_BT, length_B
        )
        self._saved = SavedState(token_T[: begin + count].astype(np.int32), state)
        losses_NL3 = np.asarray(losses_LBN3)[:, 0].swapaxes(0, 1).tolist()
        ends = range(begin + self._mini_batch, begin + count + 1, self._mini_batch)
        return [
            InnerLosses(end, tuple(map(tuple, losses_L3)))
            for end, losses_L3 in zip(ends, losses_NL3, strict=False)
        ]
