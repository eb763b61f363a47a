"""A model that is ready to run, wherever it came from."""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import numpy as np

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.models import transformer


@dataclasses.dataclass(frozen=True)
class Model:
    """A loaded model: what `bitttt_jax.load` returns and all commands run."""

    run: TrainConfig
    """Of the training run; where it wasn't trained here, the model's with defaults around it."""
    params: Any
    tokenizer: Tokenizer
    description: str
    """Where the weights come from, such as `step 850`, in a few words."""
    context: int | None = None
    """Most tokens of a sequence that the model was made for; None where nothing bounds it."""
    chat_template: str | None = None
    """Jinja template of conversations, where the model has one."""
    step: int | None = None
    """Training step, where it was trained here."""

    @property
    def config(self) -> ModelConfig:
        """The network's."""
        return self.run.model

    def logits(self, token_T: np.ndarray) -> np.ndarray:
        """Float32 logits `[T, V]` of the token after each of some tokens, which start a document.

        Raises:
          ValueError: no tokens, or one beyond the vocabulary.
        """
        tokens = np.asarray(token_T, np.int32)
        if tokens.ndim != 1 or not len(tokens) or tokens.min() < 0:
            raise ValueError("tokens must be one row of numbers that aren't negative")
        if tokens.max() >= self.config.vocab_size:
            raise ValueError(f"the model has {self.config.vocab_size} tokens, not {tokens.max()}")
        return np.asarray(_logits(self.config, self.params, tokens[None])[0])


@jax.jit(static_argnums=0)
def _logits(config: ModelConfig, params: Any, token_BT: jax.Array) -> jax.Array:
    return transformer.logits(config, params, transformer.read(config, params, token_BT))
