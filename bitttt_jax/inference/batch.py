"""The rows that write together: who works in each, and the arrays that a call takes."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.inference import row_state, steps
from bitttt_jax.inference.requests import Handle, TokenLogprobs
from bitttt_jax.inference.sampling import RowSampling, SamplingConfig
from bitttt_jax.inference.steps import Rows, Written
from bitttt_jax.models.transformer import ModelState


class Batch:
    """Rows that write, each for a request.

    Args:
      config: the model's.
      state: of the rows, which have read all but the last token of what they work on.
      handles: what each works on; further rows are free.
    """

    def __init__(self, config: ModelConfig, state: ModelState, handles: Sequence[Handle | None]):
        rows = state.position_B.shape[0]
        self._config = config
        self.state = state
        self.handles: list[Handle | None] = [None] * rows
        """What each row works on; None for a free one."""
        self._seen_BV = jnp.zeros((rows, config.vocab_size), bool)
        self._token_B = np.zeros(rows, np.int32)  # the latest, which haven't been read
        self._left_B = np.zeros(rows, np.int32)  # how many tokens each may still choose
        self._rows = _rows_of(self.handles)
        for row, handle in enumerate(handles):
            if handle:
                self._enter(row, handle)

    @property
    def running(self) -> list[tuple[int, Handle]]:
        """Rows that work, and on what."""
        return [(row, handle) for row, handle in enumerate(self.handles) if handle]

    def join(self, handle: Handle, state: ModelState, row: int, most: int) -> None:
        """Gives a request a free row; the batch grows where there is none.

        Args:
          handle: the request.
          state: in which a row has read its prompt; of at least as many cache slots.
          row: that row.
          most: rows that the batch may have.
        """
        self.state = row_state.with_slots(self.state, row_state.num_slots(state))
        if None not in self.handles:
            self.resize(min(2 * len(self.handles), most))
        free = self.handles.index(None)
        self.state = row_state.put_row(self.state, free, state, row)
        self._enter(free, handle)

    def leave(self, row: int) -> None:
        """Frees a row."""
        self.handles[row], self._left_B[row] = None, 0

    def resize(self, size: int) -> None:
        """Makes the batch one of `size` rows, those that work first."""
        order = [row for row, _ in self.running]
        index_B = np.array((order + [0] * size)[:size], np.int32)
        self.handles = [*(handle for _, handle in self.running), *[None] * (size - len(order))]
        self.state = row_state.take_rows(self.state, index_B)
        self._seen_BV = self._seen_BV[index_B]
        self._token_B = self._token_B[index_B]
        self._left_B = np.where(np.arange(size) < len(order), self._left_B[index_B], 0)
        self._rows = _rows_of(self.handles)

    def write(self, params: Any, num_tokens: int, count: int, enough: int) -> Written:
        """Lets all rows choose tokens, as `steps.write_tokens`; returns NumPy arrays."""
        written, self.state, self._seen_BV = steps.write_tokens(
            self._config,
            num_tokens,
            any(handle.request.logprobs is not None for _, handle in self.running),
            params,
            self.state,
            self._seen_BV,
            self._rows,
            self._token_B,
            self._left_B,
            min(count, int(self._left_B.max())),
            enough,
        )
        written = jax.tree.map(np.asarray, written)
        for row, _ in self.running:
            self._token_B[row] = written.token_NB[written.count_B[row] - 1, row]
            self._left_B[row] -= written.count_B[row]
        return written

    def _enter(self, row: int, handle: Handle) -> None:
        """Sets what a row works on, its state being there."""
        self.handles[row] = handle
        self._token_B[row] = handle.prompt_T[-1]
        self._left_B[row] = handle.max_tokens
        if handle.request.sampling.repetition_penalty != 1:
            seen_V = np.zeros(self._seen_BV.shape[1], bool)
            seen_V[handle.prompt_T] = True
            self._seen_BV = _with_row(self._seen_BV, row, seen_V)
        self._rows = _rows_of(self.handles)


def power_of_two(number: int) -> int:
    """The smallest one that isn't below a number."""
    return 1 << (number - 1).bit_length()


def _rows_of(handles: Sequence[Handle | None]) -> Rows:
    requests = [handle.request if handle else None for handle in handles]
    width = power_of_two(max([1, *(len(request.stop_ids) for request in requests if request)]))
    stop_BS = np.full((len(handles), width), -1, np.int32)
    for row, request in enumerate(requests):
        if request:
            stop_BS[row, : len(request.stop_ids)] = request.stop_ids
    greedy = SamplingConfig(temperature=0)
    sampling = RowSampling.of([request.sampling if request else greedy for request in requests])
    seed_B = np.array([request.seed if request else 0 for request in requests], np.uint32)
    return jax.device_put(Rows(sampling, seed_B, stop_BS))


@functools.partial(jax.jit, donate_argnums=0)
def _with_row(all_BV: jax.Array, row: int, new_V: np.ndarray) -> jax.Array:
    return all_BV.at[row].set(new_V)


def log_probabilities(written: Written, row: int, most: int | None) -> list[TokenLogprobs]:
    """Those of the tokens that a row has written.

    Args:
      written: by a call, NumPy arrays.
      row: which row's.
      most: how many of the likeliest tokens come with each; None for no log-probabilities.
    """
    if most is None or written.logprob_NB is None or written.top_NBL is None:
        return []
    count = int(written.count_B[row])
    values, ids = (all_NBL[:count, row, :most].tolist() for all_NBL in written.top_NBL)
    chosen = written.logprob_NB[:count, row].tolist()
    return [
        TokenLogprobs(logprob, tuple(zip(some_ids, some, strict=True)))
        for logprob, some_ids, some in zip(chosen, ids, values, strict=True)
    ]
