"""States that are kept so that prompts which begin with the same tokens can start from them."""

from __future__ import annotations

import dataclasses

import numpy as np

from bitttt_jax.config import ModelConfig
from bitttt_jax.inference.row_state import can_rewind, num_slots, rewind, state_bytes
from bitttt_jax.models.transformer import ModelState


@dataclasses.dataclass(frozen=True)
class SavedState:
    """A row's state, and the tokens that it has read."""

    token_T: np.ndarray
    state: ModelState

    def usable_tokens(self, config: ModelConfig, prompt_T: np.ndarray) -> int:
        """How many of a prompt's tokens needn't be read, if it starts from this state.

        Any number that both begin with, where attention alone has read them; all that the state
        has read or none, where something was learned from them. The last token of a prompt is
        always read.
        """
        length = common_prefix(self.token_T, prompt_T[:-1])
        fits = can_rewind(config, num_slots(self.state), len(self.token_T), length)
        return length if fits else 0

    def first(self, length: int) -> SavedState:
        """The state after the first `length` tokens, which must be usable."""
        if length == len(self.token_T):
            return self
        return SavedState(self.token_T[:length], rewind(self.state, length))


def common_prefix(one_T: np.ndarray, other_T: np.ndarray) -> int:
    """How many tokens at their beginning are the same."""
    length = min(len(one_T), len(other_T))
    different = np.flatnonzero(one_T[:length] != other_T[:length])
    return int(different[0]) if len(different) else length


class SavedStates:
    """Saved states of at most some bytes in all; those go first that weren't used for longest.

    Args:
      config: the model's.
      max_bytes: of all states; the latest one is kept though it may be larger. 0 keeps none.
    """

    def __init__(self, config: ModelConfig, max_bytes: int):
        self._config, self._max_bytes = config, max_bytes
        self._all: list[SavedState] = []  # the latest used last

    def add(self, new: SavedState) -> None:
        """Keeps a state, and drops those that it makes superfluous or that are too many."""
        if not self._max_bytes:
            return
        of_new = lambda old: new.usable_tokens(self._config, np.append(old.token_T, -1))
        self._all = [old for old in self._all if of_new(old) < len(old.token_T)]
        self._all.append(new)
        while len(self._all) > 1 and self.num_bytes > self._max_bytes:
            del self._all[0]

    def find(self, prompt_T: np.ndarray) -> SavedState | None:
        """The state that spares a prompt most tokens, after them; None if none does."""
        lengths = [saved.usable_tokens(self._config, prompt_T) for saved in self._all]
        if not any(lengths):
            return None
        best = int(np.argmax(lengths))
        self._all.append(self._all.pop(best))
        return self._all[-1].first(lengths[best])

    @property
    def num_bytes(self) -> int:
        """Of all states."""
        return sum(state_bytes(saved.state) for saved in self._all)
