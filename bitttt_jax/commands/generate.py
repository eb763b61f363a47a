"""`bitttt generate`: continues a prompt with a trained model."""

from __future__ import annotations

import dataclasses
import io
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING

import tyro

from bitttt_jax.errors import ConfigError, ExitCode, run_main
from bitttt_jax.runs.console_text import safe_text

if TYPE_CHECKING:
    from bitttt_jax.inference.requests import Piece


@dataclasses.dataclass(frozen=True)
class Flags:
    """Continue a prompt with a trained model; the text goes to stdout, statistics to stderr.

    bitttt generate --model=runs/quickstart --prompt="    def __init__(self"

    bitttt generate --model=runs/quickstart --prompt=- --temperature=0 < prompt.txt
    """

    model: str
    """Run directory, whose newest checkpoint is used, also while it trains; or a packed model."""
    prompt: str = ""
    """Text to continue; `-` reads it from stdin; empty starts a new document."""
    max_tokens: int = 128
    """Most tokens to generate."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens are possible; 0 for all."""
    top_p: float = 0.95
    """Only the fewest likeliest tokens that together reach this probability are possible."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same text."""
    stream: bool = True
    """Print the text while it is generated; --no_stream prints it at the end."""
    step: int | None = None
    """Training step of the checkpoint; the newest one by default."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt generate", use_underscores=True)
    if flags.max_tokens < 1:
        raise ConfigError(f"--max_tokens must be at least 1, got {flags.max_tokens}")
    if not 0 <= flags.seed < 2**32:
        raise ConfigError(f"--seed must be in [0, 2**32), got {flags.seed}")
    prompt = _read_stdin() if flags.prompt == "-" else flags.prompt
    from bitttt_jax.distributed.processes import use_compile_cache
    from bitttt_jax.inference.failures import out_of_memory
    from bitttt_jax.inference.load import load
    from bitttt_jax.inference.prompt import encode_prompt
    from bitttt_jax.inference.sampling import SamplingConfig

    sampling = SamplingConfig(flags.temperature, flags.top_k, flags.top_p)
    use_compile_cache()
    started = time.perf_counter()
    with out_of_memory("a smaller --max_tokens, or a shorter prompt"):
        model = load(flags.model, step=flags.step)
        prompt_T = encode_prompt(model.tokenizer, prompt)
        loaded = time.perf_counter()
        reply = model.stream(
            prompt_T, max_tokens=flags.max_tokens, sampling=sampling, seed=flags.seed
        )
        pieces: list[str] = []
        write = _show if flags.stream else pieces.append
        times, interrupted = _write_text(prompt, reply, write)
    write("\n")
    _show("".join(pieces))
    line = _statistics(len(prompt_T), loaded, times)
    print(f"{model.description} loaded in {loaded - started:.1f} s, {line}", file=sys.stderr)
    return ExitCode.INTERRUPTED if interrupted else ExitCode.OK


def _read_stdin() -> str:
    # What isn't UTF-8 is refused where prompts are encoded.
    return sys.stdin.buffer.read().decode("utf-8-sig", "surrogateescape")


def _show(text: str) -> None:
    """Prints a piece of text; on a terminal, without what could move the cursor or hide text."""
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")
    print(safe_text(text, multiline=True) if sys.stdout.isatty() else text, end="", flush=True)


def _write_text(
    prompt: str, reply: Iterator[Piece], write: Callable[[str], None]
) -> tuple[list[float], bool]:
    """Writes prompt and reply; returns when each token came, and whether Ctrl-C was pressed."""
    times: list[float] = []
    try:
        write(prompt)
        for piece in reply:
            times += [time.perf_counter()] * len(piece.tokens)
            write(piece.text)
    except KeyboardInterrupt:
        return times, True
    return times, False


def _statistics(prompt_tokens: int, loaded: float, times: list[float]) -> str:
    line = f"{prompt_tokens} prompt tokens"
    if times:
        line += f", first token after {times[0] - loaded:.2f} s with compilation"
    # The first call waits for compilation.
    if later := [each for each in times if each > times[0]]:
        rate = len(later) / (times[-1] - times[0])
        return f"{line}, {len(times)} tokens, the later ones at {rate:.0f} tok/s"
    return f"{line}, {len(times)} tokens"
