"""Streams: conversations and documents that keep their state from turn to turn.

Everything here runs in the engine's thread. What takes long is an iterator of events, which the
worker runs a bit at a time.
"""

from __future__ import annotations

import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import pydantic

from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.inference import memory
from bitttt_jax.inference.conversation import Conversation, Turn
from bitttt_jax.inference.dialogue import Dialogue
from bitttt_jax.inference.reader import InnerLosses, Reader
from bitttt_jax.inference.requests import Request
from bitttt_jax.inference.sampling import SamplingConfig
from bitttt_jax.server.generation import end
from bitttt_jax.server.metrics import Metrics
from bitttt_jax.server.schema import Write

if TYPE_CHECKING:
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.requests import Handle

Mode = Literal["chat", "completion"]
Event = tuple[str, dict[str, Any]]
"""Name and data."""
Events = Iterator[Sequence[Event]]

_NOTE = "stream"  # of a memory's file: what is said besides the state


class SavedStream(pydantic.BaseModel, extra="forbid"):
    """What the file of a stream holds besides the state."""

    version: Literal[1] = 1
    mode: Mode
    learn: bool
    system: str
    turns: list[Turn]
    tokens: list[int] | None


class Stream:
    """One conversation, or one document that both sides write.

    Args:
      engine: runs the model.
      mode: `chat` in the model's own format, or `completion`: all turns make up one document.
      system: instructions before a conversation.
      learn: whether what the fast weights learn stays from turn to turn.
      context: most tokens; None for any number.

    Raises:
      ConfigError: a chat with a model that was taught none.
    """

    def __init__(self, engine: Engine, mode: Mode, system: str, learn: bool, context: int | None):
        model = engine.model
        if mode == "chat" and model.chat_template is None:
            raise ConfigError(
                "this model has no chat template", "it was taught no conversations", "completion"
            )
        self._mode, self._engine = mode, engine
        template = model.chat_template if mode == "chat" else None
        conversation = Conversation.of(model.tokenizer, template, system)
        self._dialogue = Dialogue(conversation, model.config, context, learn)
        self._reader = Reader(engine) if model.config.uses_ttt else None
        self._older: int | None = None  # step of the weights that its state belonged to
        self._stops = False

    def describe(self) -> dict[str, Any]:
        """How it stands."""
        dialogue = self._dialogue
        read = len(self._reader.saved.token_T) if self._reader else 0
        return {
            "mode": self._mode,
            "learn": dialogue.keeps_learning,
            "system": dialogue.conversation.system,
            "turns": [turn.model_dump() for turn in dialogue.conversation.turns],
            "tokens": len(dialogue.stream or ()),
            "position": max(read, len(dialogue.stream or ())),
            "model_step": self._engine.model.step,
        }

    # --- settings -----------------------------------------------------------------------------

    def reset(self) -> None:
        """Forgets everything but the instructions."""
        self._dialogue.conversation.turns = []
        self._read_anew()

    def set_learning(self, on: bool) -> None:
        """Whether what the fast weights learn stays from turn to turn."""
        self._dialogue.keeps_learning = on

    def set_system(self, text: str) -> None:
        """Other instructions; the conversation is read again with them."""
        self._dialogue.conversation.system = text
        self._read_anew()

    def take_up(self, engine: Engine) -> None:
        """Goes on with newer weights of the same run, which read the conversation anew."""
        self._older = self._engine.model.step
        self._engine = engine
        self._reader = Reader(engine) if self._reader else None

    def stop(self) -> None:
        """Ends what is being written or read; what there is stays. From any thread."""
        self._stops = True

    def _read_anew(self) -> None:
        self._dialogue.stream = None
        if self._reader:
            self._reader.forget()

    # --- files --------------------------------------------------------------------------------

    def save(self, path: Path) -> None:
        """Writes state and conversation to a file.

        Raises:
          DataError: it can't be written.
        """
        dialogue, conversation = self._dialogue, self._dialogue.conversation
        tokens = dialogue.stream
        if self._reader:
            saved = self._reader.saved
        else:
            found = self._engine.find(np.array(tokens or [], np.int32))
            saved = found or self._engine.start(0)
        note = SavedStream(
            mode=self._mode,
            learn=dialogue.keeps_learning,
            system=conversation.system,
            turns=conversation.turns,
            tokens=tokens,
        )
        notes = {_NOTE: note.model_dump_json()}
        memory.save(path, self._engine.model, self._engine.config, saved, notes)

    def load(self, path: Path) -> None:
        """Takes over what a file holds; if it can't, nothing changes.

        Raises:
          DataError: the file is damaged, of another model, or no stream's.
        """
        engine = self._engine
        saved, notes = memory.load_with_notes(path, engine.model, engine.config, engine.cache)
        try:
            note = SavedStream.model_validate_json(notes.get(_NOTE, ""))
        except pydantic.ValidationError:
            raise DataError("the file holds no stream of the playground") from None
        if note.mode != self._mode:
            raise DataError(f"the file holds a {note.mode}, and this is a {self._mode}")
        known = engine.model.tokenizer.vocab_size
        if any(not 0 <= token < known for token in note.tokens or ()):
            raise DataError("the file is damaged", "it has tokens that the model doesn't know")
        reader = Reader(engine, saved) if self._reader else None
        if self._reader is None and len(saved.token_T):
            engine.keep(saved)
        dialogue, self._reader = self._dialogue, reader
        dialogue.conversation.turns, dialogue.conversation.system = note.turns, note.system
        dialogue.stream, dialogue.keeps_learning = note.tokens, note.learn

    # --- turns --------------------------------------------------------------------------------

    def write(self, asked: Write, metrics: Metrics) -> Events:
        """Takes the user's turn and writes the reply.

        Yields:
          `model`, `reading`, `inner`, `piece` and `done` events.

        Raises:
          BittttError: the turn can't be taken.
        """
        started, self._stops = time.perf_counter(), False
        yield self._news()
        tokens, forgotten = self._dialogue.ask(asked.text, asked.max_tokens)
        try:
            sampling = SamplingConfig(**asked.values())
            request = Request(
                tokens,
                asked.max_tokens,
                sampling,
                seed=asked.seed_or_any(),
                stop=tuple(asked.stop),
                stop_ids=self._engine.model.tokenizer.stop_ids,
            )
            yield from self._read_ahead(tokens[:-1])
            handle = self._engine.submit(request)
        except BaseException:
            self._dialogue.retract()
            raise
        yield from self._reply(handle, metrics)
        yield [("done", self._figures(handle, started, forgotten))]

    def read(self, text: str, metrics: Metrics) -> Events:
        """Reads a text, which the user's next turn goes on with.

        Yields:
          `model`, `reading`, `inner` and `done` events.

        Raises:
          BittttError: the text is too long, or the template refuses it.
        """
        started, self._stops = time.perf_counter(), False
        yield self._news()
        _, forgotten = self._dialogue.ask(text, 1)
        tokens = self._dialogue.certain()
        if self._reader:
            yield from self._read_ahead(tokens)
        elif len(tokens):
            # What attention has read is kept, and can be taken back to any of its tokens.
            handle = self._engine.submit(Request(tokens, 1, SamplingConfig(temperature=0)))
            try:
                yield from self._progress(handle)
            finally:
                end(handle, metrics)
        position = len(self._reader.saved.token_T) if self._reader else len(tokens)
        done = {
            "finish_reason": "cancelled" if self._stops else "stop",
            "tokens": 0,
            "prompt_tokens": len(tokens),
            "first_s": None,
            "tokens_per_s": round(len(tokens) / (time.perf_counter() - started), 1),
            "position": position,
            "forgotten": forgotten,
        }
        yield [("done", done)]

    def _news(self) -> Sequence[Event]:
        """Tells that there are newer weights since the last turn."""
        older, self._older = self._older, None
        if older is None:
            return []
        step = self._engine.model.step
        what = f"the weights of step {step} replaced those of step {older}"
        return [("model", {"step": step, "before": older, "what": f"{what}: all is read anew"})]

    def _read_ahead(self, token_T: np.ndarray) -> Events:
        """Reads the whole mini-batches of some tokens, and shows what is learned from them."""
        if not self._reader:
            return
        if not self._dialogue.keeps_learning:
            self._reader.forget()
        for losses in self._reader.read(token_T):
            done = {"done": len(self._reader.saved.token_T), "total": len(token_T)}
            yield [*map(_inner, losses), ("reading", done)]
            if self._stops:
                break
        self._engine.keep(self._reader.saved)

    def _progress(self, handle: Handle) -> Events:
        """Tells how far a prompt is read, until it is."""
        shown, total = handle.read_tokens, len(handle.prompt_T) - 1
        while not handle.chosen and not handle.is_done and not self._stops:
            news: list[Event] = []
            if handle.read_tokens > shown:
                shown = handle.read_tokens
                news = [("reading", {"done": shown, "total": total})]
            yield news

    def _reply(self, handle: Handle, metrics: Metrics) -> Events:
        text: list[str] = []

        def pieces() -> list[Event]:
            new = handle.new_pieces()
            text.extend(piece.text for piece in new)
            shown = [(piece.text, len(piece.tokens)) for piece in new if piece.text or piece.tokens]
            return [("piece", {"text": some, "tokens": count}) for some, count in shown]

        try:
            yield from self._progress(handle)
            while not handle.is_done and not self._stops:
                yield pieces()
                yield from self._watch(handle)
        finally:
            end(handle, metrics)
            rest = pieces()
            self._dialogue.end(handle, "".join(text))
        yield rest
        yield from self._watch(handle)
        if handle.error:
            raise handle.error

    def _watch(self, handle: Handle) -> Events:
        """Reads what was written since, in whole mini-batches, to show what is learned from it."""
        if self._reader:
            written_T = np.concatenate([handle.prompt_T, np.array(handle.tokens, np.int32)])
            for losses in self._reader.read(written_T):
                yield [*map(_inner, losses)]

    def _figures(self, handle: Handle, started: float, forgotten: int) -> dict[str, Any]:
        times, count = handle.times, len(handle.tokens)
        later = times.finished - times.first
        return {
            "finish_reason": handle.finish_reason,
            "tokens": count,
            "prompt_tokens": len(handle.prompt_T),
            "first_s": round(times.first - started, 4) if times.first else None,
            "tokens_per_s": round((count - 1) / later, 1) if count > 1 and later > 0 else None,
            "position": len(handle.prompt_T) + count,
            "forgotten": forgotten or handle.dropped_tokens,
        }


def _inner(losses: InnerLosses) -> Event:
    initial, current, updated = (round(value, 6) for value in losses.means)
    layers = [[round(value, 6) for value in layer] for layer in losses.layers]
    data = {"position": losses.position, "initial": initial, "current": current}
    return "inner", data | {"updated": updated, "layers": layers}
