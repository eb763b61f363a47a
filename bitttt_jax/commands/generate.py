"""`bitttt generate`: continues a prompt with a trained model."""

from __future__ import annotations

import dataclasses
import sys
import time
from collections.abc import Sequence

import tyro

from bitttt_jax.errors import ConfigError, run_main


@dataclasses.dataclass(frozen=True)
class Flags:
    """Continue a prompt with a trained model; the text goes to stdout, statistics to stderr.

    bitttt generate --model=runs/quickstart --prompt="def "

    bitttt generate --model=runs/quickstart --prompt=- --temperature=0 < prompt.txt
    """

    model: str
    """Run directory; its newest checkpoint is used, also while it trains."""
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
    """Print the text while it is generated; --no-stream prints it at the end."""
    step: int | None = None
    """Training step of the checkpoint; the newest one by default."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> None:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt generate", use_underscores=True)
    if flags.max_tokens < 1:
        raise ConfigError(f"--max_tokens must be at least 1, got {flags.max_tokens}")
    prompt = sys.stdin.read() if flags.prompt == "-" else flags.prompt
    from bitttt_jax.data.tokenizers import Decoder
    from bitttt_jax.distributed.processes import use_compile_cache
    from bitttt_jax.inference.generate import generate
    from bitttt_jax.inference.load import load_run
    from bitttt_jax.inference.prompt import encode_prompt
    from bitttt_jax.inference.sampling import SamplingConfig

    sampling = SamplingConfig(flags.temperature, flags.top_k, flags.top_p)
    use_compile_cache()
    started = time.perf_counter()
    model = load_run(flags.model, flags.step)
    loaded = time.perf_counter()
    decoder = Decoder(model.tokenizer)
    prompt_T = encode_prompt(model.tokenizer, prompt)
    times, text = [], prompt
    if flags.stream:
        print(prompt, end="", flush=True)
    for token in generate(
        model.config.model,
        model.params,
        prompt_T,
        flags.max_tokens,
        sampling=sampling,
        seed=flags.seed,
        stop_ids=(model.tokenizer.eos_id,),
        num_tokens=model.tokenizer.vocab_size,
    ):
        times.append(time.perf_counter())
        piece = decoder.push(token)
        text += piece
        if flags.stream:
            print(piece, end="", flush=True)
    rest = decoder.flush()
    print(rest if flags.stream else text + rest)
    print(_statistics(model.step, len(prompt_T), started, loaded, times), file=sys.stderr)


def _statistics(
    step: int, prompt_tokens: int, started: float, loaded: float, times: list[float]
) -> str:
    line = f"step {step}, loaded in {loaded - started:.1f} s, {prompt_tokens} prompt tokens"
    if not times:
        return f"{line}, the document ends here"
    line += f", first token after {times[0] - loaded:.2f} s (compilation included)"
    if len(times) > 2:
        # The second token still waits for the compilation of the step.
        rate = (len(times) - 2) / (times[-1] - times[1])
        line += f", {len(times)} tokens at {rate:.0f} tok/s"
    return line
