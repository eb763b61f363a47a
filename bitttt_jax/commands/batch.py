"""`bitttt batch`: continues many prompts of a file."""

from __future__ import annotations

import collections
import dataclasses
import itertools
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path
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
from bitttt_jax.commands.progress import show_progress
from bitttt_jax.commands.terminal import Interrupt, interruptible
from bitttt_jax.errors import BittttError, ConfigError, DataError, ExitCode, run_main

if TYPE_CHECKING:
    import numpy as np

    from bitttt_jax.commands.batch_items import Item
    from bitttt_jax.commands.batch_results import Result, ResultFile
    from bitttt_jax.commands.figures import Figures
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.model import Model
    from bitttt_jax.inference.requests import Completion, Handle, Request
    from bitttt_jax.inference.sampling import SamplingConfig

_AHEAD = 4  # items in hand for each row: results are written in order


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EngineFlags, SamplingFlags, ModelFlags):
    """Continue the prompts of a file, several at once, and append the results to another.

    bitttt batch --model=runs/quickstart --input=prompts.txt --output=results.jsonl

    bitttt batch --model=chat.gguf --chat --input=asked.csv --field=question --output=replies.csv

    Exit code 5 if an item failed: its result says why.
    """

    input: str
    """Prompts: `.txt`, one a line; a folder, a `.txt` file each; `.jsonl`, an object or a text a
    line; `.json`, a list of them; `.csv` with names in the first row. Objects may have an `id`,
    `messages` in place of a prompt, and sampling flags of their own by name."""
    output: str
    """Results, in the order of the prompts: `.jsonl`, `.csv` or `.txt`."""
    resume: bool = False
    """Go on with an output that is there: items that have a result in it are left out."""
    concurrency: int = 8
    """Rows that the model writes at once."""
    overflow: Literal["refuse", "truncate", "slide"] = "refuse"
    """What to do with an item that doesn't fit the context: `refuse` it, which is an error of this
    item; `truncate` its beginning; or `slide`, so that attention sees the latest tokens only."""
    field: str = "prompt"
    """Field or column with the prompt."""
    template: str = ""
    """Text around the prompts: {prompt}, or the name of another field in braces, is replaced."""
    chat: bool = False
    """Take each prompt as a user's message, in the model's chat format."""
    system: str = ""
    """With --chat: instructions that stand before each message."""
    logprobs: int | None = None
    """Log-probabilities of each token, and of so many of the likeliest ones; in `.jsonl` only."""
    stats: bool = False
    """Print rates, latencies and memory at the end."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt batch", use_underscores=True)
    _check(flags)
    from bitttt_jax.commands.batch_items import read_items
    from bitttt_jax.commands.batch_results import ResultFile

    items = read_items(Path(flags.input), flags.field)
    results = ResultFile(Path(flags.output), [item.id for item in items], resume=flags.resume)
    try:
        left = [item for item in items if item.id not in results.done.ids]
        if results.done.ids:
            print(f"{len(results.done.ids)} of {len(items)} items are done", file=sys.stderr)
        failed, interrupted = _run(flags, items, left, results) if left else (0, False)
    finally:
        results.close()
    if interrupted:
        print("stopped; the same command with --resume goes on", file=sys.stderr)
        return ExitCode.INTERRUPTED
    failed += results.done.failed
    print(f"{flags.output}: {len(items)} items, {failed} of them failed", file=sys.stderr)
    return ExitCode.DATA if failed else ExitCode.OK


def _check(flags: Flags) -> None:
    check_sampling(flags)
    check_context(flags)
    if flags.concurrency < 1:
        raise ConfigError(f"--concurrency must be at least 1, got {flags.concurrency}")
    if flags.system and not flags.chat:
        raise ConfigError("--system goes with --chat")
    if flags.logprobs is not None and not flags.output.endswith(".jsonl"):
        raise ConfigError(f"--logprobs goes with a .jsonl --output, not {flags.output}")


def _run(
    flags: Flags, items: list[Item], left: list[Item], results: ResultFile
) -> tuple[int, bool]:
    """Runs what is left; returns how many items failed, and whether Ctrl-C ended it."""
    from bitttt_jax.commands.figures import Figures
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.failures import out_of_memory

    sampling, figures, failed = sampling_config(flags), Figures(), 0
    numbers = {item.id: number for number, item in enumerate(items)}
    with out_of_memory("a smaller --concurrency or --max_tokens"), show_progress() as progress:
        model = load_model(flags)
        if flags.chat and model.chat_template is None:
            raise ConfigError(
                f"--chat: {flags.model} has no chat template", "it wasn't made for conversations"
            )
        engine = Engine(
            model,
            slots=flags.concurrency,
            context=flags.context or None,
            cache=flags.cache or None,
            overflow=flags.overflow,
        )
        done = len(items) - len(left)
        progress("batch", done, len(items))
        with interruptible() as interrupt:
            requests = (
                (item, _request(flags, model, sampling, item, numbers[item.id])) for item in left
            )
            ahead = _AHEAD * flags.concurrency
            for result in _in_order(engine, requests, figures, ahead, interrupt):
                results.append(result)
                done, failed = done + 1, failed + bool(result.error)
                progress("batch", done, len(items))
    if flags.stats:
        print("\n".join(figures.lines()), file=sys.stderr)
    return failed, bool(interrupt) and done < len(items)


def _request(
    flags: Flags, model: Model, sampling: SamplingConfig, item: Item, number: int
) -> Request | str:
    """What an item asks of the engine, or why it can't be asked."""
    from bitttt_jax.commands.batch_items import ItemError, settings_of
    from bitttt_jax.inference.requests import Request

    if item.error:
        return item.error
    try:
        own = settings_of(item)
        names = [field.name for field in dataclasses.fields(sampling)]
        changes = {name: getattr(own, name) for name in names if getattr(own, name) is not None}
        return Request(
            _tokens(flags, model, item),
            flags.max_tokens if own.max_tokens is None else own.max_tokens,
            dataclasses.replace(sampling, **changes),
            # Different draws for equal prompts, the same in every run.
            seed=(flags.seed + number) % 2**32 if own.seed is None else own.seed,
            stop=flags.stop if own.stop is None else own.stop,
            stop_ids=model.tokenizer.stop_ids,
            logprobs=flags.logprobs,
        )
    except (ItemError, BittttError) as error:
        return _words(error)


def _tokens(flags: Flags, model: Model, item: Item) -> np.ndarray:
    from bitttt_jax.commands.batch_items import prompt_of, settings_of
    from bitttt_jax.data.chat_templates import ChatTemplate, Message
    from bitttt_jax.inference.prompt import encode_prompt

    messages: list[Message] | None = None
    if conversation := settings_of(item).messages:
        messages = [message.model_dump() for message in conversation]
    elif flags.chat:
        system = [{"role": "system", "content": flags.system}] if flags.system else []
        prompt = prompt_of(item, flags.field, flags.template)
        messages = [*system, {"role": "user", "content": prompt}]
    if messages is None:
        return encode_prompt(model.tokenizer, prompt_of(item, flags.field, flags.template))
    if model.chat_template is None:
        raise DataError("it has messages, and the model no chat template")
    return ChatTemplate(model.chat_template).encode(model.tokenizer, messages)


def _in_order(
    engine: Engine,
    requests: Iterator[tuple[Item, Request | str]],
    figures: Figures,
    ahead: int,
    interrupt: Interrupt,
) -> Iterator[Result]:
    """Results in the order of the requests, some of which are in the engine's hands at a time."""
    from bitttt_jax.commands.batch_results import Result

    waiting: collections.deque[tuple[Item, Handle | str]] = collections.deque()
    while True:
        for item, request in itertools.islice(requests, ahead - len(waiting)):
            waiting.append((item, _submit(engine, request)))
        if not waiting:
            return
        item, handle = waiting.popleft()
        if isinstance(handle, str):
            yield Result(item.id, error=handle)
            continue
        while not handle.is_done:
            if interrupt:
                return
            engine.step()
        try:
            completion = handle.result()
        except BittttError as error:
            yield Result(item.id, error=_words(error))
            continue
        figures.add(completion)
        yield _result(item, completion)


def _submit(engine: Engine, request: Request | str) -> Handle | str:
    if isinstance(request, str):
        return request
    try:
        return engine.submit(request)
    except BittttError as error:  # too long, or another model's tokens
        return _words(error)


def _result(item: Item, completion: Completion) -> Result:
    from bitttt_jax.commands.batch_results import Result

    logprobs = tuple(
        {"token": token, "logprob": found.logprob, "top": found.top}
        for token, found in zip(completion.tokens, completion.logprobs, strict=False)
    )
    return Result(
        item.id,
        completion.text,
        completion.finish_reason,
        completion.prompt_tokens,
        len(completion.tokens),
        logprobs=logprobs or None,
    )


def _words(error: Exception) -> str:
    """An error in one line."""
    return " ".join(str(error).split())
