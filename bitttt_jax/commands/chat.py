"""`bitttt chat`: a conversation with a model, in the terminal or through a pipe."""

from __future__ import annotations

import dataclasses
import sys
from collections.abc import Sequence
from typing import TYPE_CHECKING

import tyro

from bitttt_jax.commands.model_flags import (
    EngineFlags,
    ModelFlags,
    SamplingFlags,
    check_context,
    check_sampling,
    load_model,
    sampling_config,
)
from bitttt_jax.commands.terminal import (
    Input,
    PipedInput,
    TerminalInput,
    interruptible,
    show,
)
from bitttt_jax.errors import BittttError, ConfigError, ExitCode, run_main

if TYPE_CHECKING:
    from bitttt_jax.commands.chat_session import Session


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EngineFlags, SamplingFlags, ModelFlags):
    """Talk with a model. Ctrl-C stops a reply; at the prompt it ends the chat, as Ctrl-D does.

    From a pipe each line is a turn, and stdout gets the replies alone.

    bitttt chat --model=runs/quickstart

    bitttt chat --model=chat.gguf --system="Answer in one sentence." < questions.txt
    """

    max_tokens: int = 512
    """Most tokens of a reply."""
    system: str = ""
    """Instructions that stand before the conversation."""
    context: int = 0
    """Most tokens of the conversation and a reply, beyond which the oldest turns are forgotten; 0
    for what the model was made for."""
    load: str = ""
    """Go on with a conversation that /save wrote."""
    stats: bool = False
    """Print rates, latencies and memory after each reply."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt chat", use_underscores=True)
    check_sampling(flags)
    check_context(flags)
    from bitttt_jax.inference.failures import out_of_memory

    with out_of_memory("a smaller --context"):
        session = _session(flags)
        interactive = sys.stdin.isatty() and sys.stdout.isatty()
        if flags.load:
            _tell(str(session.command(f"/load {flags.load}")))
        _tell(session.introduction())
        if interactive:
            from bitttt_jax.commands.chat_session import NAMES

            return _talk(session, TerminalInput(NAMES), flags)
        return _talk(session, PipedInput(), flags)


def _session(flags: Flags) -> Session:
    sampling = sampling_config(flags)
    model = load_model(flags)
    from bitttt_jax.commands.chat_session import Session

    context = flags.context or model.context
    if model.context and context and context > model.context:
        raise ConfigError(f"--context={context}: the model was made for {model.context} tokens")
    if context and flags.max_tokens >= context:
        raise ConfigError(
            f"--max_tokens={flags.max_tokens} leaves no room in a context of {context} tokens",
            fix=f"--max_tokens={max(context // 4, 1)}",
        )
    return Session(
        model,
        flags.model,
        sampling,
        flags.max_tokens,
        flags.stop,
        flags.seed,
        context,
        flags.cache or None,
        _tell,
        flags.system,
    )


def _talk(session: Session, source: Input, flags: Flags) -> ExitCode:
    """Turn by turn until the end; a mistake ends nothing, and a pipe's shows in the exit code."""
    code, is_pipe = ExitCode.OK, isinstance(source, PipedInput)
    while (line := source.read()) is not None:
        try:
            if line.startswith("/") and not line.startswith("//"):
                answer = session.command(line)
                if answer is None:
                    break
                _tell(answer)
                continue
            stopped = _answer(session, line.removeprefix("/") if line.startswith("//") else line)
        except BittttError as error:
            _tell(f"error: {error}")
            code = error.exit_code if is_pipe else code
            continue
        if flags.stats:
            _tell("\n".join(session.figures.lines()))
        if stopped and is_pipe:
            return ExitCode.INTERRUPTED
    return code


def _answer(session: Session, text: str) -> bool:
    """Prints the model's reply to a turn; returns whether Ctrl-C stopped it."""
    handle = session.submit(text)
    with interruptible() as interrupt:
        for piece in session.reply(handle):
            show(piece.text)
            if interrupt:
                handle.cancel()
    show("\n")
    if interrupt:
        _tell("(stopped)")
    return bool(interrupt)


def _tell(text: str) -> None:
    """Says something that isn't the model's."""
    from bitttt_jax.runs.console_text import safe_text

    print(safe_text(text, multiline=True), file=sys.stderr, flush=True)
