"""A model that is ready to run, wherever it came from."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator, Sequence
from typing import Any

import jax
import numpy as np

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.inference.engine import Engine, Overflow
from bitttt_jax.inference.prompt import encode_prompt
from bitttt_jax.inference.requests import Completion, Handle, Piece, Request
from bitttt_jax.inference.sampling import SamplingConfig
from bitttt_jax.layers.attention import CacheType
from bitttt_jax.models import transformer
from bitttt_jax.ternary.packing import PackedTernary


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

    @property
    def is_packed(self) -> bool:
        """Whether its ternary weights are stored in 2 bits or fewer, not as latent floats."""
        is_packed = lambda leaf: isinstance(leaf, PackedTernary)
        return any(map(is_packed, jax.tree.leaves(self.params, is_leaf=is_packed)))

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

    def stream(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        *,
        max_tokens: int = 128,
        sampling: SamplingConfig = SamplingConfig(),
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        logprobs: int | None = None,
        context: int | None = None,
        cache: CacheType | None = None,
        overflow: Overflow = "refuse",
    ) -> Iterator[Piece]:
        """Continues a prompt, piece by piece.

        Args:
          prompt: text that a document begins with, or tokens, the bos included.
          max_tokens: most tokens to generate.
          sampling: how each is chosen.
          seed: of the draws.
          stop: strings before which the text ends.
          stop_ids: tokens that end the text; None for those that end a document or a reply.
          logprobs: log-probabilities of each token and of so many of the likeliest ones; None for
            neither.
          context: most tokens of a sequence; None for the model's own bound.
          cache: what attention caches hold; None for the type of the activations.
          overflow: what happens where the context is too small, as in `Engine`.

        Raises:
          ConfigError: an impossible setting or prompt, or one that doesn't fit.
          DataError: the prompt isn't valid text.
        """
        yield from self._submit(
            prompt, max_tokens, sampling, seed, stop, stop_ids, logprobs, context, cache, overflow
        )

    def generate(
        self,
        prompt: str | Sequence[int] | np.ndarray,
        *,
        max_tokens: int = 128,
        sampling: SamplingConfig = SamplingConfig(),
        seed: int = 0,
        stop: Sequence[str] = (),
        stop_ids: Sequence[int] | None = None,
        logprobs: int | None = None,
        context: int | None = None,
        cache: CacheType | None = None,
        overflow: Overflow = "refuse",
    ) -> Completion:
        """Continues a prompt: what `stream` does, as a whole."""
        return self._submit(
            prompt, max_tokens, sampling, seed, stop, stop_ids, logprobs, context, cache, overflow
        ).result()

    def _submit(
        self,
        prompt,
        max_tokens,
        sampling,
        seed,
        stop,
        stop_ids,
        logprobs,
        context,
        cache,
        overflow,
    ) -> Handle:
        engine = Engine(self, context=context, cache=cache, overflow=overflow, reuse_bytes=0)
        tokens = encode_prompt(self.tokenizer, prompt) if isinstance(prompt, str) else prompt
        ends = self.tokenizer.stop_ids if stop_ids is None else tuple(stop_ids)
        request = Request(tokens, max_tokens, sampling, seed, tuple(stop), ends, logprobs)
        return engine.submit(request)


@jax.jit(static_argnums=0)
def _logits(config: ModelConfig, params: Any, token_BT: jax.Array) -> jax.Array:
    return transformer.logits(config, params, transformer.read(config, params, token_BT))
