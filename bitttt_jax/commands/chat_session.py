"""A chat as it goes on: the conversation, its settings, and what the user's commands do to it."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import numpy as np

from bitttt_jax.commands.figures import Figures
from bitttt_jax.errors import ConfigError, DataError, did_you_mean
from bitttt_jax.inference.conversation import Conversation
from bitttt_jax.inference.dialogue import Dialogue
from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.model import Model
from bitttt_jax.inference.requests import Handle, Piece, Request
from bitttt_jax.inference.sampling import SamplingConfig
from bitttt_jax.layers.attention import CacheType

COMMANDS: Mapping[str, str] = {
    "/help": "this list",
    "/reset": "forget the conversation",
    "/save FILE": "write the conversation to a file",
    "/load FILE": "go on with the conversation of a file",
    "/system TEXT": "instructions before the conversation; none without a text",
    "/temp X": "another temperature; 0 always takes the likeliest token",
    "/ttt on|off": "let what was learned stay from turn to turn, or read everything again in each",
    "/stats": "rates, latencies, memory",
    "/quit": "end, as Ctrl-D does",
}
_REUSE_BYTES = 2**30  # of the latest state, from which the next turn goes on
NAMES = tuple(usage.partition(" ")[0] for usage in COMMANDS)


@dataclasses.dataclass
class Session:
    """One chat with a model."""

    model: Model
    name: str
    """Of the model, as the user gave it."""
    sampling: SamplingConfig
    max_tokens: int
    stop: tuple[str, ...]
    seed: int
    context: int | None
    """Most tokens of the conversation and the next reply; None for no limit."""
    cache: CacheType | None
    """Of attention's keys and values."""
    notify: Callable[[str], None]
    """Tells the user something that isn't the model's."""
    system: dataclasses.InitVar[str] = ""

    def __post_init__(self, system: str) -> None:
        model = self.model
        self.conversation = Conversation.of(model.tokenizer, model.chat_template, system)
        config = model.config
        self._dialogue = Dialogue(self.conversation, config, self.context, config.uses_ttt)
        self.figures = Figures()
        self._engine = self._new_engine()
        self._replies = 0

    def introduction(self) -> str:
        """What the user should know before the first turn."""
        lines = [f"{self.name}: {self.model.description}. /help lists the commands."]
        if self.conversation.template is None:
            lines.append(
                "This model has no chat template: it was taught no conversations, and goes on "
                "writing the document that your lines and its own make up."
            )
        return "\n".join(lines)

    def submit(self, text: str) -> Handle:
        """Takes the user's turn; the reply is what the handle gives.

        Raises:
          DataError: the turn is too long, or the template refuses it; then it wasn't taken.
        """
        dialogue = self._dialogue
        tokens, forgotten = dialogue.ask(text, self.max_tokens)
        try:
            if not dialogue.keeps_learning:
                self._engine = self._new_engine()
            request = Request(
                tokens,
                self.max_tokens,
                self.sampling,
                seed=(self.seed + self._replies) % 2**32,
                stop=self.stop,
                stop_ids=self.model.tokenizer.stop_ids,
            )
            handle = self._engine.submit(request)
        except BaseException:
            dialogue.retract()
            raise
        if forgotten:
            learned = ", and what was learned from them" if self.model.config.uses_ttt else ""
            self.notify(
                f"(the {forgotten} oldest turns are forgotten{learned}: the rest and a reply fill "
                f"the context of {self.context:,} tokens)"
            )
        self._replies += 1
        return handle

    def reply(self, handle: Handle) -> Iterator[Piece]:
        """The pieces of a reply, which becomes a turn of the conversation however it ends."""
        text = ""
        try:
            for piece in self.figures.watch(handle):
                text += piece.text
                yield piece
        finally:
            self._dialogue.end(handle, text)

    def command(self, line: str) -> str | None:
        """Does what a line that begins with a slash asks.

        Returns:
          What to answer; None to end the chat.

        Raises:
          BittttError: there is no such command, or it can't be done.
        """
        name, _, rest = line.strip().partition(" ")
        rest = rest.strip()
        match name:
            case "/help":
                return _help()
            case "/quit" | "/exit":
                return None
            case "/reset":
                self.conversation.turns.clear()
                self._begin_anew()
                return "the conversation is forgotten"
            case "/save" | "/load":
                return self._file(name, rest)
            case "/system":
                self.conversation.system, self._dialogue.stream = rest, None
                return "the instructions are set" if rest else "there are no instructions"
            case "/temp":
                return self._set_temperature(rest)
            case "/ttt":
                return self._set_ttt(rest)
            case "/stats":
                return "\n".join(self.figures.lines())
        raise ConfigError(
            f"there is no command {name}{did_you_mean(name, NAMES)}",
            fix="/help, or two slashes to say it to the model",
        )

    def _file(self, name: str, rest: str) -> str:
        if not rest:
            raise ConfigError(f"{name} needs the name of a file", fix=f"{name} chat.json")
        path = Path(rest).expanduser()
        memory = path.with_name(f"{path.name}.memory")
        if name == "/save":
            is_kept = self._save(memory)
            self.conversation.save(path, self.name, self._dialogue.stream if is_kept else None)
            kept = f", and {memory} what was learned from them" if is_kept else ""
            return f"{path} holds {len(self.conversation.turns)} turns{kept}"
        saved = self.conversation.load(path)
        self._begin_anew()
        if self._dialogue.keeps_learning and saved.tokens:
            self._load(memory, saved.tokens)
        other = "" if saved.model == self.name else f", from a chat with {saved.model}"
        return f"{len(saved.turns)} turns{other}"

    def _save(self, memory: Path) -> bool:
        """Writes what the fast weights learned; returns whether there is something."""
        memory.unlink(missing_ok=True)  # of another conversation that was saved here
        stream = self._dialogue.stream
        if not self._dialogue.keeps_learning or not stream:
            return False
        try:
            return self._engine.save(memory, np.array(stream, np.int32)) > 0
        except ConfigError:  # too little was read to keep it
            return False

    def _load(self, memory: Path, tokens: list[int]) -> None:
        try:
            known = self._engine.load(memory).tolist()
        except DataError as error:
            self.notify(f"({error.what}; the conversation is read again)")
        else:
            if tokens[: len(known)] == known:
                self._dialogue.stream = tokens

    def _begin_anew(self) -> None:
        """Forgets what the model keeps of what it has read."""
        self._engine, self._dialogue.stream = self._new_engine(), None

    def _set_temperature(self, rest: str) -> str:
        try:
            value = float(rest)
        except ValueError:
            raise ConfigError(f"/temp needs a number, not {rest!r}", fix="/temp 0.7") from None
        self.sampling = dataclasses.replace(self.sampling, temperature=value)
        return f"the temperature is {value:g}"

    def _set_ttt(self, rest: str) -> str:
        if not self.model.config.uses_ttt:
            return "the model has no test-time training layers: there is nothing to turn on or off"
        if rest not in ("on", "off"):
            raise ConfigError(f"/ttt needs on or off, not {rest!r}", fix="/ttt on, or /ttt off")
        self._dialogue.keeps_learning = rest == "on"
        if self._dialogue.keeps_learning:
            return "what the fast weights learn stays from turn to turn"
        return (
            "each reply begins with the trained fast weights and reads the conversation again: "
            "nothing stays of turns that are forgotten"
        )

    def _new_engine(self) -> Engine:
        keeps = self._dialogue.keeps_learning or not self.model.config.uses_ttt
        return Engine(self.model, cache=self.cache, reuse_bytes=_REUSE_BYTES if keeps else 0)


def _help() -> str:
    lines = [f"{usage:14} {what}" for usage, what in COMMANDS.items()]
    return "\n".join([*lines, "Alt-Enter begins a new line; Ctrl-C stops a reply; // says a /."])
