"""`bitttt serve`: a model behind OpenAI's API."""

from __future__ import annotations

import dataclasses
import importlib.util
import os
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Literal

import tyro

from bitttt_jax.commands.model_flags import EngineFlags, ModelFlags, check_context, load_model
from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from bitttt_jax.inference.engine import Engine
    from bitttt_jax.inference.model import Model
    from bitttt_jax.server.watch import Watcher
    from bitttt_jax.server.worker import Worker

_NEEDED = ("starlette", "uvicorn", "prometheus_client")
_KEY = "BITTTT_API_KEY"
# Of models without a bound of their own: attention's caches are as large as what is asked for.
_CONTEXT = 8192


@dataclasses.dataclass(frozen=True, kw_only=True)
class Flags(EngineFlags, ModelFlags):
    """Serve a model to OpenAI's clients: /v1/models, /v1/completions, /v1/chat/completions.

    Ctrl-C ends it. While the model is loaded, /health says so.

    bitttt serve --model=runs/quickstart

    bitttt serve --model=runs/quickstart --watch --slots=8 --port=8080
    """

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is reached from other computers."""
    port: int = 8000
    """Port to listen on; 0 for any free one, which is printed."""
    name: str = ""
    """The model's name in requests and answers; by default that of its file or folder."""
    api_key: str = ""
    """What requests must bring as `Authorization: Bearer KEY`. Better in the environment variable
    BITTTT_API_KEY, which other users of the computer don't see."""
    slots: int = 16
    """Most replies that are written together."""
    queue: int = 64
    """Most further requests that wait; others are turned away with 429."""
    reuse: int = 512
    """Mebibytes of states that are kept for prompts which begin as earlier ones did; 0 for none."""
    timeout: float = 600.0
    """Seconds after which a request is given up."""
    overflow: Literal["refuse", "truncate", "slide"] = "refuse"
    """What to do with more than fits the context: `refuse` it; `truncate` the prompt's beginning;
    or `slide`, so that attention sees the latest tokens only."""
    cors: str = ""
    """Origins whose pages may ask, separated by commas, as https://example.org; `*` for all."""
    allow_host: str = ""
    """Other names by which the server may be called, separated by commas; behind a proxy, say."""
    max_body: int = 4 * 2**20
    """Most bytes of a request."""
    watch: bool = False
    """Take up newer checkpoints of the run as they come, between replies."""
    playground: bool = False
    """Serve the playground's endpoints too, below /bitttt/."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> int:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt serve", use_underscores=True)
    _check(flags)
    from bitttt_jax.server.app import Settings, make_app
    from bitttt_jax.server.guard import is_loopback
    from bitttt_jax.server.serving import listen, serve
    from bitttt_jax.server.worker import Worker

    started = time.monotonic()
    key = flags.api_key or os.environ.get(_KEY, "")
    worker = Worker(
        lambda: load_model(flags),
        lambda model: _engine(flags, model),
        most=flags.slots + flags.queue,
        timeout=flags.timeout,
        slots=flags.slots,
    )
    settings = Settings(
        flags.name or Path(flags.model).expanduser().resolve().name,
        flags.host,
        _listed(flags.allow_host),
        key,
        _listed(flags.cors),
        flags.max_body,
        flags.playground,
        flags.context or None,
    )
    app = make_app(worker, settings)
    listener = listen(flags.host, flags.port)
    host, port = listener.getsockname()[:2]
    shown = f"[{host}]" if ":" in host else host
    _tell(f"http://{shown}:{port}/v1 (model {settings.name}); Ctrl-C ends it")
    if not is_loopback(flags.host) and not key:
        _tell(f"whoever reaches this computer can use it: {_KEY} would set an API key")
    _tell(f"loading {flags.model}")
    watcher = _watcher(flags, worker)

    def ready() -> None:
        engine = worker.engine
        if engine is None:
            _tell(f"ready after {time.monotonic() - started:.1f} s")
        else:
            _tell("newer weights are taken up")

    if watcher:
        watcher.start()
    try:
        return serve(app, worker, listener, ready)
    finally:
        if watcher:
            watcher.stop()


def _check(flags: Flags) -> None:
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ConfigError(
            "bitttt serve needs extra packages",
            f"{', '.join(missing)} can't be imported",
            'pip install "bitttt-jax[serve]"',
        )
    check_context(flags)
    for name in ("slots", "timeout", "max_body"):
        if not getattr(flags, name) > 0:
            raise ConfigError(f"--{name} must be positive, got {getattr(flags, name)}")
    if min(flags.queue, flags.reuse) < 0 or not 0 <= flags.port < 2**16:
        raise ConfigError("--queue and --reuse must not be negative, and --port be below 65,536")
    if flags.watch:
        from bitttt_jax.runs.directory import RunDirectory

        if not RunDirectory(Path(flags.model).expanduser()).config_path.is_file():
            raise ConfigError(f"--watch: {flags.model} is no run, and gets no checkpoints")
        if flags.step is not None:
            raise ConfigError(f"--watch takes up the newest checkpoint, not --step={flags.step}")


def _engine(flags: Flags, model: Model) -> Engine:
    from bitttt_jax.inference.engine import Engine

    context = flags.context or model.context or max(_CONTEXT, model.run.data.seq_len)
    return Engine(
        model,
        slots=flags.slots,
        context=context,
        cache=flags.cache or None,
        overflow=flags.overflow,
        reuse_bytes=flags.reuse * 2**20,
    )


def _watcher(flags: Flags, worker: Worker) -> Watcher | None:
    if not flags.watch:
        return None
    from bitttt_jax.server.watch import Watcher

    run = Path(flags.model).expanduser()

    def load(step: int) -> Model:
        from bitttt_jax.inference.load import load_run

        return load_run(run, step)

    return Watcher(run, load, worker)


def _listed(text: str) -> tuple[str, ...]:
    return tuple(part.strip() for part in text.split(",") if part.strip())


def _tell(text: str) -> None:
    print(text, file=sys.stderr, flush=True)
