"""The studio's pictures: one walk through all of it, on a fresh folder, in each language.

    python docs/make_studio_screenshots.py --images=docs/images/studio

Conversations are uploaded and prepared, a model is trained on them and watched across a reload; a
batch that doesn't fit is mended by the button of its card; that run is stopped and resumed. The
first model is talked to while it learns, its state saved and loaded, and it is exported. Each step
must work for the next one, so that the walk is a test as well. Besides the package the script needs
chromium, `pip install playwright`, and for Japanese pictures a font for it.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import random
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

import psutil
import tyro
from PIL import Image

from bitttt_jax.errors import ConfigError, run_main

if TYPE_CHECKING:
    from playwright.sync_api import Browser, ConsoleMessage, Page

ROOT = Path(__file__).parent.parent
BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--no-first-run",
)  # fmt: skip
_TOKEN = "for-the-pictures-only"
_SIZE = {"width": 1440, "height": 900}
_PNG_COLOURS = 96
_SLOW_MS = 300_000  # until something that computes has happened
_ROOM = 900 << 20  # bytes that a run may need beyond the first one
_TOO_LARGE = 128  # rows of a batch that needs more
_RUN, _LARGE_RUN = "first", "too-large"
_DATA, _STATE = "colours", "after-reading"

_COLOURS = {
    "apple": "red", "sky": "blue", "grass": "green", "snow": "white", "lemon": "yellow",
    "coal": "black", "rose": "pink", "sea": "blue", "banana": "yellow", "cloud": "grey",
    "tomato": "red", "night": "black", "leaf": "green", "sun": "golden", "brick": "red",
    "plum": "violet", "milk": "white", "frog": "green", "crow": "black", "carrot": "orange",
}  # fmt: skip
_QUESTIONS = ("What colour is the {}?", "Which colour has the {}?", "Tell me the colour of the {}.")


@dataclasses.dataclass(frozen=True)
class Flags:
    """Walk through the studio and make pictures of it."""

    images: Path = ROOT / "docs" / "images" / "studio"
    """Folder for the pictures."""
    languages: tuple[str, ...] = ("en", "ja")
    """One walk each."""
    steps: int = 400
    """Training steps of the model that is talked to."""


def main(argv: Sequence[str]) -> int:
    """Makes the pictures; returns the exit code."""
    return run_main(_main, argv)


def parse_flags(argv: Sequence[str]) -> Flags:
    """The flags among some arguments."""
    return tyro.cli(
        Flags, args=list(argv), prog="python docs/make_studio_screenshots.py", use_underscores=True
    )


def _main(argv: Sequence[str]) -> None:
    flags = parse_flags(argv)
    flags.images.mkdir(parents=True, exist_ok=True)
    with open_browser() as browser:
        for language in flags.languages:
            with (
                tempfile.TemporaryDirectory(prefix="bitttt-studio-") as folder,
                open_studio(Path(folder)) as (url, process),
            ):
                Walk(browser, url, language, flags).all(Path(folder), process)


class Walk:
    """The steps, in one window of the browser.

    Args:
      browser: where the window is opened.
      url: of the studio, with its token.
      language: `en` or `ja`.
      flags: folder of the pictures, and how long to train.
    """

    def __init__(self, browser: Browser, url: str, language: str, flags: Flags):
        self.language, self.flags = language, flags
        context = browser.new_context(
            viewport=_SIZE, locale=language, color_scheme="light", accept_downloads=True
        )
        self.page: Page = context.new_page()
        self.page.set_default_timeout(60_000)
        self.faults: list[str] = []
        self.peak = 0
        origin = "{0.scheme}://{0.netloc}".format(urlsplit(url))
        self.page.on("pageerror", lambda error: self.faults.append(f"page: {error}"))
        self.page.on("console", self._note)
        self.page.on(
            "request",
            lambda request: (
                request.url.startswith((origin, "data:", "blob:"))
                or self.faults.append(f"outside: {request.url}")
            ),
        )
        self.page.goto(url)

    def all(self, folder: Path, studio: psutil.Process) -> None:
        """Walks from the first page to the export."""
        self.welcome()
        self.prepare_data(folder)
        self.train()
        self.watch(folder)
        self.run_out_of_memory(studio)
        self.stop_and_resume(studio)
        self.talk()
        self.keep_state()
        self.export(folder)
        self.look_around()
        self.page.context.close()
        if self.faults:
            raise AssertionError("\n".join(self.faults))

    # --- the steps --------------------------------------------------------------------------------

    def welcome(self) -> None:
        """A fresh folder: the way to the first run is one button."""
        self.page.locator("#first-run").wait_for()
        self.shoot("welcome")

    def prepare_data(self, folder: Path) -> None:
        """Conversations are uploaded, looked at, and prepared."""
        paths = [folder / f"{_DATA}.jsonl", folder / "programs.txt"]
        paths[0].write_text(conversations())
        paths[1].write_text(programs())
        self.visit("data")
        self.page.set_input_files(".drop input[type=file]", paths)
        self.page.locator(".sources li", has_text="programs.txt").wait_for()
        self.page.locator(".conversation .learned").first.wait_for(timeout=_SLOW_MS)
        self.page.locator(".conversation").first.scroll_into_view_if_needed()
        self.shoot("data")
        self.page.fill("#data-name", _DATA)
        self.page.click("#prepare")
        self.page.locator("#train-on-it").click(timeout=_SLOW_MS)

    def train(self) -> None:
        """The form: a command is pasted, what differs is marked, and the run started."""
        self.page.locator("#start-run").wait_for()
        path = self.page.locator("[data-key='data.sources.0.path']").input_value()
        overrides = {
            "steps": self.flags.steps, "model.mixers": "ttt_linear", "data.seq_len": 256,
            "data.batch_size": 4, "data.tokenizer.kind": "bytes", "data.sources": path,
            "eval.every_steps": 50,
            "eval.sample_prompt": "", "log.every_steps": 1,
            "log.health_every_steps": 20, "checkpoint.every_steps": 100,
        }  # fmt: skip
        command = ["bitttt train --config=debug"]
        command += [f"--config.{key}={value}" for key, value in overrides.items()]
        self.page.click("details:has(#command-paste) summary")
        self.page.fill("#command-paste", " ".join(command))
        self.page.click("#command-read")
        self.page.locator("[data-field=steps] .dot:visible").wait_for()
        self.page.fill("#run-name", _RUN)
        self.page.locator("#command", has_text=_RUN).wait_for()
        self.page.click("#estimate")
        self.page.locator("[data-job] :is(.badge.ok, .card.bad)").wait_for(timeout=_SLOW_MS)
        assert not self.page.locator("[data-job] .card.bad").count()
        self.shoot("new")
        self.page.click("#start-run")

    def watch(self, folder: Path) -> None:
        """In the middle of the run the page is reloaded, and shows all of it again."""
        self.wait_for_state("live")
        self.page.locator(".legend b").first.wait_for(timeout=_SLOW_MS)
        self.page.reload()
        self.page.locator(".run-head h1", has_text=_RUN).wait_for()
        self.page.locator(".legend b").first.wait_for(timeout=_SLOW_MS)
        self.peak = _address_space(folder / "runs" / _RUN)
        self.wait_for_step(self.flags.steps * 5 // 8)
        self.page.locator(".charts .chart:visible .legend b").nth(10).wait_for()
        self.shoot("run")
        self.wait_for_state("ok")
        self.page.click("[role=tab][id$=checkpoints]")
        self.page.locator("tbody tr").first.wait_for()
        self.page.click("[role=tab][id$=log]")
        self.page.locator(".log", has_text="loss").wait_for()

    def run_out_of_memory(self, studio: psutil.Process) -> None:
        """A batch that is too large; its card's button halves it, and the run starts."""
        self.page.click("#clone-run")
        self.page.locator("#start-run").wait_for()
        self.page.fill("[data-key='data.batch_size']", str(_TOO_LARGE))
        self.page.fill("#run-name", _LARGE_RUN)
        self.page.locator("#command", has_text=f"batch_size={_TOO_LARGE}").wait_for()
        limit = self.peak + _ROOM  # what a computer with less memory would give it
        studio.rlimit(psutil.RLIMIT_AS, (limit, psutil.RLIM_INFINITY))
        self.page.click("#start-run")
        card = self.page.locator(".card[data-kind=out_of_memory]")
        card.wait_for(timeout=_SLOW_MS)
        self.shoot("out_of_memory")
        # Two steps may be under way at once: one half needn't be small enough.
        for halvings in range(4):
            card.locator("[data-action=halve_batch]").click()
            self.page.locator(".applied", has_text="data.batch_size").wait_for()
            if halvings == 0:
                self.shoot("mended")
            self.page.click("#start-run")
            self.page.locator("main[data-page=run] h1").wait_for()
            if self.reaches_step(6):
                return
        raise AssertionError("the batch never became small enough")

    def stop_and_resume(self, studio: psutil.Process) -> None:
        """The run that now fits is stopped, which saves it, and goes on from there."""
        self.page.click("#stop-run")
        self.wait_for_state("warn")
        stopped = self.step()
        self.page.click("#resume-run")
        self.wait_for_state("live")
        self.wait_for_step(stopped + 1)
        self.page.click("#stop-run")
        self.wait_for_state("warn")
        studio.rlimit(psutil.RLIMIT_AS, (psutil.RLIM_INFINITY, psutil.RLIM_INFINITY))

    def talk(self) -> None:
        """A question, and a text that it learns from while it reads."""
        self.visit("play", f"?model={_RUN}")
        page = self.page
        page.locator("#play-status-0", has_text=re.compile(r"\d{3}")).wait_for(timeout=_SLOW_MS)
        assert page.locator("#learn-0").is_checked()
        page.click("summary:near(#send)")
        page.fill("#sampling-temperature", "0.2")
        page.fill("#sampling-max_tokens", "60")
        page.click("summary:near(#send)")
        modes = page.locator(".composer .segments button")
        modes.nth(1).click()
        page.click("#example")
        page.click("#read")
        page.locator("#stop-reply").wait_for(state="hidden", timeout=_SLOW_MS)
        modes.nth(0).click()
        for question in (_QUESTIONS[0].format("sky"), _QUESTIONS[1].format("grass")):
            page.fill("#prompt", question)
            page.click("#send")
            page.locator("#stop-reply").wait_for(state="hidden", timeout=_SLOW_MS)
        page.locator(".gain b").wait_for()
        self.shoot("playground")

    def keep_state(self) -> None:
        """What it has learned is saved; after a reset it is loaded again."""
        page = self.page
        page.click("#save-state-0")
        page.fill("dialog input", _STATE)
        page.click("dialog form button")
        page.locator(".toast", has_text=_STATE).wait_for()
        page.click("#reset-0")
        page.locator(".transcript .hint").wait_for()
        page.click("#load-state-0")
        page.locator(f"[data-state^={_STATE}]").click()
        page.locator(".transcript .turn").first.wait_for()
        page.locator(".conversation-panel .facts", has_text=re.compile(r"\d{3}")).wait_for()

    def export(self, folder: Path) -> None:
        """It is packed, compared, and downloaded."""
        self.visit("export", f"?model={_RUN}")
        self.page.click("#start-export")
        self.page.locator("#export-result").wait_for(timeout=_SLOW_MS)
        self.shoot("export")
        with self.page.expect_download() as downloading:
            self.page.click("#export-result a")
        path = folder / downloading.value.suggested_filename
        downloading.value.save_as(path)
        assert path.stat().st_size > 10_000, path

    def look_around(self) -> None:
        """The pages that are left, in the dark."""
        self.page.emulate_media(color_scheme="dark")
        self.visit("runs")
        self.page.locator(".run .spark").first.wait_for()
        self.shoot("runs")
        self.visit("system")
        self.page.locator(".tile-value").first.wait_for()

    # --- what they are made of --------------------------------------------------------------------

    def visit(self, page: str, query: str = "") -> None:
        """Goes to a page by its address."""
        self.page.evaluate("address => { location.hash = address }", f"#/{page}{query}")
        self.page.locator(f"main[data-page={page}] h1").wait_for()

    def step(self) -> int:
        """Where the run is."""
        digits = re.findall(r"\d[\d,]*", self.page.locator(".run-meter .num").first.inner_text())
        return int(digits[0].replace(",", "")) if digits else 0

    def wait_for_step(self, step: int) -> None:
        """Until the run is there."""
        if not self.reaches_step(step):
            raise AssertionError(f"the run failed before step {step}")

    def reaches_step(self, step: int) -> bool:
        """Waits until the run is there; False if it failed before."""
        deadline = time.monotonic() + _SLOW_MS / 1000
        while time.monotonic() < deadline:
            if self.page.locator(".card[data-kind]").count():
                return False
            if self.step() >= step:
                return True
            self.page.wait_for_timeout(200)
        raise AssertionError(f"the run hasn't reached step {step}")

    def wait_for_state(self, look: str) -> None:
        """Until the run's badge looks like this: live, ok, warn or bad."""
        self.page.locator(f".run-head .badge.{look}").wait_for(timeout=_SLOW_MS)

    def shoot(self, name: str) -> None:
        """Makes a picture of what is in the window."""
        self.page.locator(".toast").last.wait_for(state="detached")
        self.page.wait_for_timeout(300)  # canvases are drawn with the next frames
        path = self.flags.images / f"{name}.{self.language}.png"
        save_picture(self.page.screenshot(animations="disabled"), path)

    def _note(self, message: ConsoleMessage) -> None:
        if message.type in ("error", "warning"):
            self.faults.append(f"console: {message.text} {message.location}")


# --- around the walk -----------------------------------------------------------------------------


def conversations() -> str:
    """Questions and answers about colours, as a file of messages."""
    draw = random.Random(0)
    rows = []
    for _ in range(3000):
        thing, colour = draw.choice(list(_COLOURS.items()))
        question = draw.choice(_QUESTIONS).format(thing)
        answer = f"The {thing} is {colour}."
        turns = [("user", question), ("assistant", answer)]
        rows.append({"messages": [{"role": role, "content": text} for role, text in turns]})
    return "".join(f"{json.dumps(row)}\n" for row in rows)


def programs() -> str:
    """Text in which names come again and again: some modules of Python's standard library."""
    modules = sorted(Path(os.__file__).parent.glob("*.py"))
    return "\n".join(path.read_text(encoding="utf-8") for path in modules[:20])


@contextlib.contextmanager
def open_browser() -> Iterator[Browser]:
    """A browser without a window.

    Raises:
      ConfigError: there is none.
    """
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        raise ConfigError("there is no program `chromium`", fix="apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(BROWSER_FLAGS))
        yield browser
        browser.close()


@contextlib.contextmanager
def open_studio(folder: Path) -> Iterator[tuple[str, psutil.Process]]:
    """Starts a studio in a folder; yields its address, and its process."""
    # It runs from the folder, as an installed one would.
    path = os.pathsep.join(filter(None, [str(ROOT), os.environ.get("PYTHONPATH", "")]))
    env = os.environ | {"PYTHONPATH": path, "BITTTT_STUDIO_TOKEN": _TOKEN}
    env["JAX_NUM_CPU_DEVICES"] = "1"  # of which tests have several
    with (folder / "studio.log").open("w+") as log:
        process = psutil.Popen(
            [sys.executable, "-m", "bitttt_jax", "studio", "--port=0", "--no_browser"],
            cwd=folder, env=env, stdout=log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            yield _address(folder / "studio.log", process), process
        finally:
            _end(process)


def _address(log: Path, process: psutil.Process) -> str:
    deadline = time.monotonic() + 60
    while time.monotonic() < deadline and process.is_running():
        if found := re.search(r"http://\S+", log.read_text()):
            return found[0]
        time.sleep(0.05)
    raise ConfigError("the studio didn't start", log.read_text()[-2000:])


def _end(process: psutil.Process) -> None:
    """Ends the studio, and what a walk that broke off has left at work."""
    children = process.children(recursive=True)
    process.terminate()
    process.wait(30)
    for child in children:
        with contextlib.suppress(psutil.NoSuchProcess):
            child.kill()


def _address_space(run: Path) -> int:
    """The most that the process of a run has had, in bytes."""
    pid = json.loads((run / "status.json").read_text())["pid"]
    found = re.search(r"^VmPeak:\s*(\d+) kB", Path(f"/proc/{pid}/status").read_text(), re.MULTILINE)
    assert found
    return int(found[1]) * 1024


def save_picture(png: bytes, path: Path) -> None:
    """Writes a picture with few colours, which flat surfaces don't need more of."""
    image: Any = Image.open(io.BytesIO(png)).convert("RGB")
    image = image.quantize(_PNG_COLOURS, method=Image.Quantize.MEDIANCUT, dither=Image.Dither.NONE)
    partial = path.with_name(f".{path.name}")
    image.save(partial, format="png", optimize=True)
    partial.replace(path)
    print(f"{path.name}  {path.stat().st_size / 1000:.0f} kB", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
