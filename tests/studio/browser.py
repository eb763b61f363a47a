"""A studio with made-up runs, and a browser that notes everything that goes wrong on a page."""

from __future__ import annotations

import json
import math
import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from bitttt_jax.config_loading import load_config, to_json

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parent.parent.parent
FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
HOSTILE = '<img src=x onerror="window.hacked=1"><script>window.hacked=1</script>'
_TOKEN = "a-token-for-the-tests"


def chromium() -> str | None:
    """The browser's program."""
    return shutil.which("chromium") or shutil.which("google-chrome")


def write_run(runs: Path, name: str, *, state: str = "finished", steps: int = 300) -> Path:
    """A run as its folder tells it, with curves, samples, checkpoints and events."""
    folder = runs / name
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(to_json(load_config("debug")))
    now = time.time()
    rows = []
    for step in range(10, steps + 1, 10):
        row: dict[str, Any] = {"t": now, "step": step, "train/loss": 2 + 3 * math.exp(-step / 80)}
        row |= {"lr": 1e-3, "grad_norm": 1.0, "perf/tokens_per_s": 9000.0}
        row |= {"mem/host_peak_gib": 0.7, "ttt/inner_loss_initial": 1.0}
        row |= {"ttt/inner_loss_current": 0.7, "ttt/inner_loss_updated": 0.6}
        row |= {"quant/zero_share": 0.3, "quant/flip_share": 0.01}
        rows.append(row | ({"eval/loss": 2.5} if step % 100 == 0 else {}))
    (folder / "metrics.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    events = [
        {"t": now, "kind": "eval", "step": 100, "loss": 2.5},
        {"t": now, "kind": "sample", "step": 100, "text": f"def {HOSTILE}"},
    ]
    (folder / "events.jsonl").write_text("".join(json.dumps(row) + "\n" for row in events))
    (folder / "train.log").write_text(f"compile  1.0 s\nstep=10 loss=4.6\n{HOSTILE}\n")
    exit_code = {"finished": 0, "failed": 3}.get(state, 42)
    status = {
        "state": state, "step": steps, "steps": 300, "phase": "", "eta_s": None, "pid": 1,
        "create_time": 1.0, "host": "elsewhere", "heartbeat": now, "exit_code": exit_code,
        "error_kind": "out_of_memory" if state == "failed" else None,
    }  # fmt: skip
    (folder / "status.json").write_text(json.dumps(status))
    return folder


def write_failed_run(runs: Path, name: str) -> Path:
    """A run that ended for want of memory."""
    folder = write_run(runs, name, state="failed", steps=50)
    error = {
        "kind": "out_of_memory", "exit_code": 3, "title": "out of device memory: no room for 9 GiB",
        "detail": HOSTILE, "hints": ["a smaller data.batch_size"], "traceback": "Traceback: ...",
        "tail": ["last line"],
    }  # fmt: skip
    (folder / "error.json").write_text(json.dumps(error))
    return folder


@contextmanager
def open_studio(runs: Path, *flags: str) -> Iterator[str]:
    """Starts a studio on a folder of runs; yields its address with the token."""
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": path, "BITTTT_STUDIO_TOKEN": _TOKEN}
    log = runs.parent / "studio.log"
    command = ["studio", f"--runs={runs}", "--port=0", "--no_browser", *flags]
    with log.open("w") as output:
        process = subprocess.Popen(
            [sys.executable, "-m", "bitttt_jax", *command],
            cwd=runs.parent, env=env, stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
    try:
        deadline = time.monotonic() + 120
        while not (found := re.search(r"http://\S+", log.read_text())):
            assert process.poll() is None and time.monotonic() < deadline, log.read_text()
            time.sleep(0.05)
        yield found[0]
    finally:
        process.terminate()
        process.wait(60)


class Window:
    """A page of the browser; `faults` has what it complained about and whom else it asked.

    Args:
      browser: where it is opened.
      url: of the studio.
      options: of the browser's context: viewport, locale, color_scheme, ….
    """

    def __init__(self, browser: Browser, url: str, **options: Any):
        self.context = browser.new_context(**options)
        self.page: Page = self.context.new_page()
        self.page.set_default_timeout(30_000)
        self.faults: list[str] = []
        self._origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        self.page.on("pageerror", lambda error: self.faults.append(f"page: {error}"))
        self.page.on("console", self._note)
        self.page.on("request", lambda request: self._check(request.url))
        self.page.goto(url)
        self.page.locator("nav a[aria-current]").wait_for()

    def visit(self, address: str) -> None:
        """Goes to a page by the part of the address after #/."""
        self.page.evaluate("address => { location.hash = address }", f"#/{address}")
        name = address.split("/")[0].split("?")[0]
        self.page.locator(f"main[data-page={name}] h1").wait_for()

    def overflow(self) -> int:
        """Pixels by which the page is wider than the window."""
        script = "document.documentElement.scrollWidth - document.documentElement.clientWidth"
        width: int = self.page.evaluate(script)
        return width

    def close(self) -> None:
        """Closes the window; what it complained about is an error."""
        self.context.close()
        assert not self.faults, "\n".join(self.faults)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text} {message.location}")

    def _check(self, url: str) -> None:
        if not url.startswith((self._origin, "data:", "blob:")):
            self.faults.append(f"outside: {url}")
