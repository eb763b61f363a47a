"""Many requests of all kinds at a server; prints one line of JSON.

    python -m benchmarks.serve_soak URL PID REQUESTS

Well-formed ones, streamed and not; clients that go in the middle; malformed bodies; clients that
don't read what they asked for. The same requests each time, in an order that the clients' speed
decides.
"""

from __future__ import annotations

import asyncio
import json
import random
import sys
import time
import urllib.request

import psutil

from benchmarks.serve_case import Connection, request

_CLIENTS = 24
_KINDS = {"whole": 45, "streamed": 30, "gone": 12, "malformed": 8, "slow": 5}
_WARM_UP = 0.25  # of the requests, after which memory is compared
_MALFORMED = (b"{", b"[]", b'{"prompt": 1}', b'{"prompt": "a", "n": 3}', b"\xff" * 100)
_SLOW_BUFFER = 2048
_DEADLINE_S = 300


class Soak:
    """The requests, and what came of them.

    Args:
      url: of the server.
      pid: of its process.
      count: how many requests.
    """

    def __init__(self, url: str, pid: int, count: int):
        self._url, self._process, self._count = url, psutil.Process(pid), count
        rng = random.Random(0)
        self._kinds = rng.choices(list(_KINDS), list(_KINDS.values()), k=count)
        self.asked = {kind: self._kinds.count(kind) for kind in _KINDS}
        self.answered = dict.fromkeys(_KINDS, 0)
        self._memory: list[tuple[int, float]] = []
        self._done = 0

    async def run(self) -> dict[str, object]:
        """Asks all, and waits until nothing is left."""
        await self._warm_up()
        began = time.perf_counter()
        numbers = iter(enumerate(self._kinds))
        await asyncio.gather(*(self._go_on(numbers) for _ in range(_CLIENTS)))
        seconds = time.perf_counter() - began
        jobs = await self._jobs_left()
        after = [await self._whole(seed) for seed in range(32)]  # every slot answers
        begin = int(_WARM_UP * self._count)
        early = [mib for done, mib in self._memory if begin <= done < begin + self._count // 10]
        late = [mib for done, mib in self._memory if done >= 0.9 * self._count]
        mean = lambda values: sum(values) / len(values)
        return {
            "asked": self.asked,
            "answered": self.answered,
            "seconds": round(seconds, 1),
            "jobs_left": jobs,
            "answered_after": sum(after),
            "rss_mib_after_a_quarter": round(mean(early), 1),
            "rss_mib_at_the_end": round(mean(late), 1),
            "growth_percent": round(100 * (mean(late) / mean(early) - 1), 2),
        }

    async def _warm_up(self) -> None:
        """Every size of batch is compiled, which takes memory once."""
        for values in ({}, {"logprobs": 20}):
            for size in (1, 2, 4, 8, 16):
                await asyncio.gather(*(self._small(number, values) for number in range(size)))

    async def _small(self, number: int, values: dict[str, int]) -> None:
        async with Connection(self._url) as connection:
            await connection.ask(request(number, max_tokens=40, **values))
            async for _ in connection.events():
                continue

    async def _go_on(self, numbers) -> None:
        for number, kind in numbers:
            ask = getattr(self, f"_{kind}")
            async with asyncio.timeout(_DEADLINE_S):
                is_right = await ask(number)
            self.answered[kind] += is_right
            self._done += 1
            self._memory.append((self._done, self._process.memory_info().rss / 2**20))

    async def _whole(self, number: int) -> bool:
        length = 1 + number % 24
        async with Connection(self._url) as connection:
            body = request(number, stream=False, stream_options=None, max_tokens=length)
            status = await connection.ask(body)
            found = json.loads(await connection.reader.read())
            return status == 200 and found["usage"]["completion_tokens"] == length

    async def _streamed(self, number: int) -> bool:
        length, usage = 1 + number % 24, None
        async with Connection(self._url) as connection:
            status = await connection.ask(request(number, max_tokens=length))
            async for event in connection.events():
                usage = event.get("usage") or usage
            return status == 200 and usage is not None and usage["completion_tokens"] == length

    async def _gone(self, number: int) -> bool:
        async with Connection(self._url) as connection:
            body = request(number, max_tokens=4000, stream=number % 2 == 0)
            head = (
                f"POST /v1/completions HTTP/1.1\r\nHost: localhost\r\nContent-Length: {len(body)}"
            )
            connection.writer.write(head.encode() + b"\r\n\r\n" + body[: len(body) - number % 3])
            await asyncio.sleep(0.01 * (number % 20))
            connection.writer.transport.abort()
        return True

    async def _malformed(self, number: int) -> bool:
        async with Connection(self._url) as connection:
            return await connection.ask(_MALFORMED[number % len(_MALFORMED)]) == 400

    async def _slow(self, number: int) -> bool:
        """Asks for much and reads nothing, until it goes."""
        async with Connection(self._url, _SLOW_BUFFER) as connection:
            await connection.ask(request(number, max_tokens=2000, logprobs=20))
            connection.writer.transport.pause_reading()  # type: ignore[attr-defined]
            await asyncio.sleep(1)
            connection.writer.transport.abort()
        return True

    async def _jobs_left(self) -> int:
        """Requests that the server still works on, once none is asked any more."""
        deadline = time.monotonic() + _DEADLINE_S
        while True:
            text = await asyncio.to_thread(_read, f"{self._url}/metrics")
            line = next(line for line in text.splitlines() if line.startswith("bitttt_jobs "))
            jobs = int(float(line.split()[1]))
            if not jobs or time.monotonic() > deadline:
                return jobs
            await asyncio.sleep(0.1)


def _read(url: str) -> str:
    with urllib.request.urlopen(url) as answer:
        return answer.read().decode()


def main(argv: list[str]) -> None:
    """Asks the requests."""
    url, pid, count = argv
    print(json.dumps(asyncio.run(Soak(url, int(pid), int(count)).run())))


if __name__ == "__main__":
    main(sys.argv[1:])
