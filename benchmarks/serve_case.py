"""One measurement of `benchmarks.serve`; prints one line of JSON.

    python -m benchmarks.serve_case model PRESET MIXER FOLDER
    python -m benchmarks.serve_case engine FOLDER COUNT SECONDS
    python -m benchmarks.serve_case clients URL COUNT SECONDS

The first writes the model. The others ask for the same replies, so many at once, again and again:
of the engine alone, and of a server.
"""

from __future__ import annotations

import asyncio
import dataclasses
import json
import statistics
import sys
import time
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

PROMPT, TOKENS = "It was a dark and stormy night", 128
_WARM_UP = 5


class Connection:
    """A connection to the server, by hand: a client's own time must not count."""

    def __init__(self, url: str, limit: int = 2**20):
        parts = urlsplit(url)
        self._host, self._port, self._limit = parts.hostname, parts.port, limit
        self.reader: asyncio.StreamReader
        self.writer: asyncio.StreamWriter

    async def __aenter__(self) -> Connection:
        self.reader, self.writer = await asyncio.open_connection(
            self._host, self._port, limit=self._limit
        )
        return self

    async def __aexit__(self, *_: object) -> None:
        self.writer.close()

    async def ask(self, body: bytes, path: str = "/v1/completions") -> int:
        """Sends a request and reads the answer's head; returns the status."""
        head = f"POST {path} HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}\r\n"
        self.writer.write(f"{head}Connection: close\r\n\r\n".encode() + body)
        await self.writer.drain()
        found = await self.reader.readuntil(b"\r\n\r\n")
        return int(found.split(maxsplit=2)[1])

    async def events(self) -> AsyncIterator[dict[str, Any]]:
        """The events of a stream, as they come."""
        while line := await self.reader.readline():
            if line.startswith(b"data: {"):
                yield json.loads(line[6:])


def request(seed: int, **values: Any) -> bytes:
    """The body of a streamed request."""
    options = {"stream": True, "stream_options": {"include_usage": True}}
    own = {"prompt": PROMPT, "max_tokens": TOKENS, "temperature": 0, "seed": seed}
    return json.dumps(own | options | values).encode()


async def reply(url: str, seed: int) -> dict[str, float]:
    """Asks for a reply: seconds to the first token, of each later one, and their number."""
    async with Connection(url) as connection:
        began = time.perf_counter()
        status = await connection.ask(request(seed))
        assert status == 200, status
        first = last = tokens = 0.0
        async for event in connection.events():
            if event["choices"] and not first:
                first = time.perf_counter()
            if event["choices"] and event["choices"][0]["finish_reason"] is None:
                last = time.perf_counter()
            if event.get("usage"):
                tokens = event["usage"]["completion_tokens"]
    return {"first_s": first - began, "token_s": (last - first) / (tokens - 1), "tokens": tokens}


async def clients(url: str, count: int, seconds: float) -> dict[str, float]:
    """Some clients at once, each of which asks again and again."""
    # First the same for longer: clients that come one by one make batches of every size, each of
    # which is compiled once.
    await _ask_for(url, count, _WARM_UP * seconds)
    began = time.perf_counter()
    found = await _ask_for(url, count, seconds)
    return summary(found, time.perf_counter() - began)


async def _ask_for(url: str, count: int, seconds: float) -> list[dict[str, float]]:
    began, found = time.perf_counter(), []

    async def go_on(number: int) -> None:
        seed = number
        while time.perf_counter() - began < seconds:
            found.append(await reply(url, seed))
            seed += count

    await asyncio.gather(*(go_on(number) for number in range(count)))
    return found


def write_model(preset: str, mixer: str, folder: str) -> None:
    """A packed model with random weights, which never ends a text by itself."""
    from bitttt_jax.config_loading import apply_overrides, load_config, with_vocabulary
    from bitttt_jax.data.tokenizers import Tokenizer
    from bitttt_jax.inference import packed_model, speed

    tokenizer = Tokenizer.bytes()
    config = apply_overrides(load_config(preset), [f"--config.model.mixers={mixer}"])
    config = with_vocabulary(config, tokenizer.vocab_size)
    params = speed.random_params(config.model, "int8")
    name, leaf = ("embed", "embedding") if config.model.tie_embeddings else ("head", "kernel")
    table = params[name][leaf]
    scale = table.scale.at[tokenizer.eos_id].set(0)  # its logit is 0, others are larger
    params[name][leaf] = dataclasses.replace(table, scale=scale)
    packed_model.save(
        Path(folder),
        config,
        params,
        tokenizer,
        step=0,
        layout="i2_s",
        table="int8",
        context=None,
        chat_template=None,
        card=f"# {preset}\n\nRandom weights.\n",
    )


def engine(folder: str, slots: int, seconds: float) -> dict[str, float]:
    """The engine alone, as many requests at once."""
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.load import load
    from bitttt_jax.inference.prompt import encode_prompt
    from bitttt_jax.inference.requests import Request
    from bitttt_jax.inference.sampling import SamplingConfig

    model = load(folder)
    runner = Engine(model, slots=slots, context=8192)
    tokens = encode_prompt(model.tokenizer, PROMPT)

    def ask(seed: int) -> Any:
        sampling, stops = SamplingConfig(temperature=0), model.tokenizer.stop_ids
        return runner.submit(Request(tokens, TOKENS, sampling, seed, stop_ids=stops))

    handles = [ask(seed) for seed in range(slots)]
    for _ in range(2):
        while runner.step():
            continue
        handles = [ask(seed) for seed in range(slots)]
    began, found, seed = time.perf_counter(), [], slots
    while handles:
        runner.step()
        for handle in [handle for handle in handles if handle.is_done]:
            times, count = handle.times, len(handle.tokens)
            later = (times.finished - times.first) / (count - 1)
            first = times.first - times.submitted
            found.append({"first_s": first, "token_s": later, "tokens": count})
            handles.remove(handle)
            if time.perf_counter() - began < seconds:
                handles.append(ask(seed))
                seed += 1
    return summary(found, time.perf_counter() - began)


def summary(found: list[dict[str, float]], seconds: float) -> dict[str, float]:
    """Medians of some replies, and tokens a second of all."""
    median = lambda name: statistics.median(one[name] for one in found)
    return {
        "replies": len(found),
        "first_s": median("first_s"),
        "token_s": median("token_s"),
        "tokens_per_s": sum(one["tokens"] for one in found) / seconds,
    }


def main(argv: list[str]) -> None:
    """Runs one measurement."""
    kind, place, *rest = argv
    if kind == "model":
        print(json.dumps(write_model(place, *rest)))
    elif kind == "engine":
        print(json.dumps(engine(place, int(rest[0]), float(rest[1]))))
    else:
        print(json.dumps(asyncio.run(clients(place, int(rest[0]), float(rest[1])))))


if __name__ == "__main__":
    main(sys.argv[1:])
