"""`bitttt generate`: continues a prompt with a model."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Callable, Iterable, Sequence
from typing import TYPE_CHECKING, Literal

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
from bitttt_jax.commands.terminal import interruptible, read_stdin, show
from bitttt_jax.errors import ExitCode, run_main

if TYPE_CHECKING:
    from bitttt_jax.commands.figures import Figures
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.inference.requests import Handle, Piece, TokenLogprobs


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EngineFlags, SamplingFlags, ModelFlags):
    """Continue a prompt with a model; the text goes to stdout, statistics to stderr.

    bitttt generate --model=runs/quickstart --prompt="    def __init__(self"

    bitttt generate --model=runs/quickstart --prompt=- --temperature=0 < prompt.txt
    """

    prompt: str = ""
    """Text to continue; `-` reads it from stdin; empty starts a new document."""
    overflow: Literal["refuse", "truncate", "slide"] = "refuse"
    """What to do with more than fits the context: `refuse` it; `truncate` the prompt's beginning;
    or `slide`, so that attention sees the latest tokens only."""
    stream: bool = True
    """Print the text while it is generated; --no_stream prints it at the end."""
    logprobs: int | None = None
    """Print the log-probability of each token, and of so many of the likeliest ones."""
    stats: bool = False
    """Print rates, latencies and memory too."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt generate", use_underscores=True)
    check_sampling(flags)
    check_context(flags)
    prompt = read_stdin() if flags.prompt == "-" else flags.prompt
    from bitttt_jax.commands.figures import Figures
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.failures import out_of_memory
    from bitttt_jax.inference.prompt import encode_prompt
    from bitttt_jax.inference.requests import Request

    sampling, figures = sampling_config(flags), Figures()
    started = time.perf_counter()
    with out_of_memory("a smaller --max_tokens, or a shorter prompt"):
        model = load_model(flags)
        prompt_T = encode_prompt(model.tokenizer, prompt)
        loaded = time.perf_counter()
        request = Request(
            prompt_T,
            flags.max_tokens,
            sampling,
            seed=flags.seed,
            stop=flags.stop,
            stop_ids=model.tokenizer.stop_ids,
            logprobs=flags.logprobs,
        )
        engine = Engine(
            model,
            context=flags.context or None,
            cache=flags.cache or None,
            overflow=flags.overflow,
            reuse_bytes=0,
        )
        handle = engine.submit(request)
        pieces: list[str] = []
        write = show if flags.stream else pieces.append
        interrupted = _write_text(prompt, figures.watch(handle), handle, write)
        write("\n")
        show("".join(pieces))
    completion = handle.result()
    if flags.logprobs is not None:
        _show_logprobs(model.tokenizer, completion.tokens, completion.logprobs)
    seconds = f"{model.description} loaded in {loaded - started:.1f} s"
    print(f"{seconds}, {_statistics(len(prompt_T), figures)}", file=sys.stderr)
    if flags.stats:
        print("\n".join(figures.lines()), file=sys.stderr)
    return ExitCode.INTERRUPTED if interrupted else ExitCode.OK


def _write_text(
    prompt: str, pieces: Iterable[Piece], handle: Handle, write: Callable[[str], None]
) -> bool:
    """Writes prompt and reply; returns whether Ctrl-C ended it."""
    with interruptible() as interrupt:
        write(prompt)
        for piece in pieces:
            write(piece.text)
            if interrupt:
                handle.cancel()
        return bool(interrupt)


def _show_logprobs(
    tokenizer: Tokenizer, tokens: Sequence[int], logprobs: Sequence[TokenLogprobs]
) -> None:
    """Prints a line for each token: its log-probability, and the likeliest tokens with theirs."""
    for token, found in zip(tokens, logprobs, strict=True):
        # Parts of characters have no text of their own.
        name = lambda id_: repr(tokenizer.decode([id_]).strip("\ufffd") or tokenizer.token(id_))
        top = ", ".join(f"{name(id_)} {logprob:.3f}" for id_, logprob in found.top)
        print(f"{found.logprob:8.3f}  {name(token):16} {top}".rstrip(), file=sys.stderr)


def _statistics(prompt_tokens: int, figures: Figures) -> str:
    (reply,) = figures.replies
    line = f"{prompt_tokens} prompt tokens"
    if reply.tokens:
        line += f", first token after {reply.first:.2f} s with compilation"
    if reply.rate:
        return f"{line}, {reply.tokens} tokens, the later ones at {reply.rate:.0f} tok/s"
    return f"{line}, {reply.tokens} tokens"
