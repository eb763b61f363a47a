"""`bitttt studio`: a web page on this computer to prepare data, train, watch and try models."""

from __future__ import annotations

import dataclasses
import os
import re
import secrets
import socket
import sys
import threading
import webbrowser
from collections.abc import Sequence
from pathlib import Path

import tyro

from bitttt_jax.errors import ConfigError, ExitCode, run_main

_PORT = 8701
_TOKEN = re.compile(r"[A-Za-z0-9._~-]{16,200}")
_GIB = 1 << 30


@dataclasses.dataclass(frozen=True)
class Flags:
    """Open the studio in a browser: data, training, curves, playground, export.

    It prints an address that contains a token; whoever has it can use the studio. Runs go on when
    the page or the studio is closed, and are found again. Ctrl-C ends the studio.

    bitttt studio --data=~/texts

    bitttt studio --host=0.0.0.0 --no_browser
    """

    runs: Path = Path("runs")
    """Folder of the runs; the studio's own things lie in its folder .studio."""
    data: tuple[Path, ...] = ()
    """Folders that text may be read from."""
    host: str = "127.0.0.1"
    """Address to listen on. Any other than this one lets other computers in that have the token."""
    port: int = _PORT
    """Port to listen on; the default gives way to the next free one, 0 takes any."""
    no_browser: bool = False
    """Only print the address."""
    token: str = ""
    """The secret, by default BITTTT_STUDIO_TOKEN or a new one; others can see a process's flags."""
    max_upload: float = 20.0
    """Largest uploaded file, in GiB."""


def main(argv: Sequence[str]) -> int:
    """Runs the command; returns its exit code."""
    return run_main(_main, argv)


def _main(argv: Sequence[str]) -> ExitCode:
    flags = tyro.cli(Flags, args=list(argv), prog="bitttt studio", use_underscores=True)
    token = _token(flags.token or os.environ.get("BITTTT_STUDIO_TOKEN", ""))
    for folder in flags.data:
        if not folder.expanduser().is_dir():
            raise ConfigError(f"--data={folder} is no folder")
    try:
        from bitttt_jax.studio.app import Studio, make_app
        from bitttt_jax.studio.security import Policy, allowed_hosts
        from bitttt_jax.studio.server import listen, serve
    except ModuleNotFoundError as error:
        if error.name not in ("starlette", "uvicorn"):
            raise
        raise ConfigError(
            "bitttt studio needs extra packages",
            f"{error.name} is not installed",
            'pip install "bitttt-jax[studio]"',
        ) from None

    try:
        studio = Studio(
            runs=flags.runs.expanduser(),
            data=tuple(folder.expanduser().absolute() for folder in flags.data),
            max_upload=round(flags.max_upload * _GIB),
        )
    except OSError as error:
        raise ConfigError(f"--runs={flags.runs} can't be used", str(error)) from None
    with listen(flags.host, flags.port, search=flags.port == _PORT) as opened:
        port = opened.getsockname()[1]
        hosts, any_address = allowed_hosts(flags.host, (socket.gethostname(), socket.getfqdn()))
        policy = Policy(
            token=token,
            # Cookies are shared by all ports of a computer.
            cookie=f"bitttt_studio_{port}",
            hosts=hosts,
            any_address=any_address,
            max_upload=studio.max_upload,
        )
        url = f"http://{_shown_host(flags.host)}:{port}/?token={token}"
        print(f"bitttt studio: {url}", flush=True)
        if any_address or not hosts <= allowed_hosts("localhost")[0]:
            print("Other computers can reach it; without https they can read along.", flush=True)
        if not flags.no_browser and _has_display():
            threading.Thread(target=webbrowser.open, args=[url], daemon=True).start()
        serve(make_app(studio, policy), opened, studio.stopping)
    print("The studio has ended; runs go on.", flush=True)
    return ExitCode.OK


def _token(given: str) -> str:
    if given and not _TOKEN.fullmatch(given):
        raise ConfigError(
            "the token can't be used", "it needs 16 to 200 letters, digits or any of ._~-"
        )
    return given or secrets.token_urlsafe(32)


def _shown_host(host: str) -> str:
    if host in ("0.0.0.0", "::", ""):
        return socket.gethostname()
    return f"[{host}]" if ":" in host else host


def _has_display() -> bool:
    # Elsewhere a browser would be one in this terminal.
    is_desktop = sys.platform in ("darwin", "win32")
    return is_desktop or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
