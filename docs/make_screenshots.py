"""The README's pictures, taken from real runs: docs/images/console.png and tensorboard.png.

    python docs/make_screenshots.py --config=quickstart --run=runs/quickstart

`--config` trains in a terminal of tmux, takes the picture part of the way, and stops; `--run`
shows a finished run in TensorBoard. Both are drawn by Chromium. Besides the package the script
needs tmux, chromium, and `pip install playwright`.
"""

from __future__ import annotations

import contextlib
import dataclasses
import io
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

import psutil
import rich.console
import rich.terminal_theme
import tyro
from PIL import Image
from rich.text import Text

from bitttt_jax.config_loading import FLAG_PREFIX
from bitttt_jax.errors import ConfigError, run_main
from bitttt_jax.train_flags import parse_train_flags

if TYPE_CHECKING:
    from playwright.sync_api import Browser

ROOT = Path(__file__).parent.parent
IMAGES = ROOT / "docs" / "images"
_COLUMNS, _ROWS = 110, 50
_POLL_SECONDS = 0.1
_DEADLINE_SECONDS = 3600
_PNG_COLOURS = 128
_BROWSER_FLAGS = (
    "--no-sandbox", "--disable-gpu", "--disable-background-networking", "--disable-quic",
    "--disable-component-update", "--disable-sync", "--no-first-run",
    "--disable-3d-apis",  # TensorBoard then draws its curves as SVG
)  # fmt: skip

# Rich's own template loads its font from the network.
_TERMINAL_SVG = """\
<svg viewBox="0 0 {width} {height}" xmlns="http://www.w3.org/2000/svg">
<style>
.{unique_id}-matrix {{ font: {char_height}px "DejaVu Sans Mono", monospace;
  line-height: {line_height}px; }}
.{unique_id}-title {{ font: 16px "DejaVu Sans", sans-serif; }}
{styles}
</style>
<defs>
<clipPath id="{unique_id}-clip-terminal">
  <rect x="0" y="0" width="{terminal_width}" height="{terminal_height}" />
</clipPath>
{lines}
</defs>
{chrome}
<g transform="translate({terminal_x}, {terminal_y})" clip-path="url(#{unique_id}-clip-terminal)">
{backgrounds}
<g class="{unique_id}-matrix">{matrix}</g>
</g>
</svg>
"""

# The cards of the picture, and how TensorBoard lays them out.
_TAGS = (
    r"^(train/loss|eval/loss|quant/(flip_share|latent|zero_share)"
    r"|ttt/(fast_drift|inner_loss_\w+))$"
)
_LAYOUT = {
    "timeSeriesSettingsPaneOpened": False,
    "stepSelectorEnabled": False,
    "sideBarWidthInPercent": 12,
    "scalarSmoothing": 0,
    "ignoreOutliers": False,
    "theme": "light",
}


@dataclasses.dataclass(frozen=True)
class Flags:
    """Make docs/images/console.png (with --config) and docs/images/tensorboard.png (with --run).

    `--config.KEY=VALUE` arguments are passed on to the training.
    """

    config: str = ""
    """Preset or file of the run in the terminal."""
    at: float = 0.6
    """Share of its steps after which the picture is taken."""
    run: str = ""
    """Finished run directory to show in TensorBoard."""


def main(argv: Sequence[str]) -> int:
    """Makes the pictures; returns the exit code."""
    return run_main(_main, argv)


def parse_flags(argv: Sequence[str]) -> tuple[Flags, list[str]]:
    """The flags, and the overrides among the arguments."""
    overrides = [arg for arg in argv if arg.startswith(FLAG_PREFIX)]
    rest = [arg for arg in argv if not arg.startswith(FLAG_PREFIX)]
    flags = tyro.cli(Flags, args=rest, prog="python docs/make_screenshots.py", use_underscores=True)
    if not flags.config and not flags.run:
        raise ConfigError("neither --config nor --run is given: there is nothing to show")
    return flags, overrides


def _main(argv: Sequence[str]) -> None:
    flags, overrides = parse_flags(argv)
    IMAGES.mkdir(exist_ok=True)
    with _open_browser() as browser:
        if flags.config:
            screen = _train_in_terminal(flags, overrides)
            _photograph_terminal(browser, screen, IMAGES / "console.png")
        if flags.run:
            _photograph_tensorboard(browser, Path(flags.run), IMAGES / "tensorboard.png")


# --- the terminal --------------------------------------------------------------------------------


def _train_in_terminal(flags: Flags, overrides: Sequence[str]) -> str:
    """Trains in a folder of its own until `--at`; returns the screen with its escape codes."""
    args = [f"--config={flags.config}", *overrides]
    config = parse_train_flags(args).config
    until = round(flags.at * config.steps)
    shown = shlex.join(["bitttt", "train", *args, f"--workdir=runs/{config.name}"])
    with tempfile.TemporaryDirectory(prefix="bitttt-screen-") as folder:
        run = shlex.join([sys.executable, "-m", "bitttt_jax", *shlex.split(shown)[1:]])
        script = f"printf '$ %s\\n' {shlex.quote(shown)}; exec {run}"
        with _open_terminal(script, Path(folder)) as terminal:
            screen = _wait_for_step(terminal, until, config.steps)
    # Checkpoints are shown with their absolute paths; where this folder lies is of no interest.
    return screen.replace(f"{os.path.realpath(folder)}/", "")


@contextlib.contextmanager
def _open_terminal(script: str, folder: Path) -> Iterator[list[str]]:
    """Runs a script in a terminal; yields the tmux command that controls it."""
    tmux = ["tmux", "-f", os.devnull, "-S", str(folder / ".tmux")]
    size = ["-x", str(_COLUMNS), "-y", str(_ROWS)]
    env = os.environ | {"PYTHONPATH": str(ROOT), "COLORTERM": "truecolor", "LC_ALL": "C.UTF-8"}
    subprocess.run(
        [*tmux, "new-session", "-d", *size, "-c", str(folder), "bash", "-c", script],
        check=True,
        env=env,
    )
    process = psutil.Process(int(_tell(tmux, "display-message", "-p", "#{pane_pid}")))
    try:
        yield tmux
    finally:
        subprocess.run([*tmux, "kill-server"], capture_output=True)
        process.wait()  # until then it writes into the folder


def _wait_for_step(tmux: list[str], step: int, steps: int) -> str:
    """The screen once its progress bar has reached a step."""
    deadline = time.monotonic() + _DEADLINE_SECONDS
    while time.monotonic() < deadline:
        try:
            screen = _tell(tmux, "capture-pane", "-e", "-p")
        except subprocess.CalledProcessError:
            raise ConfigError(f"the run ended before its bar was seen at step {step}") from None
        shown = re.findall(rf"\b(\d+)/{steps}\b  loss", Text.from_ansi(screen).plain)
        if shown and int(shown[-1]) >= step:
            return screen
        time.sleep(_POLL_SECONDS)
    raise ConfigError(f"the run hadn't reached step {step} after {_DEADLINE_SECONDS} s")


def _tell(tmux: list[str], *command: str) -> str:
    return subprocess.run(
        [*tmux, *command], check=True, capture_output=True, text=True, encoding="utf-8"
    ).stdout


def _photograph_terminal(browser: Browser, screen: str, path: Path) -> None:
    console = rich.console.Console(
        record=True, width=_COLUMNS, file=io.StringIO(), force_terminal=True, highlight=False
    )
    console.print(Text.from_ansi(screen.rstrip("\n")))
    svg = console.export_svg(
        title="bitttt", theme=rich.terminal_theme.MONOKAI, code_format=_TERMINAL_SVG
    )
    width, height = map(float, re.findall(r'viewBox="0 0 ([\d.]+) ([\d.]+)"', svg)[0])
    # Rich's units are large: the terminal's letters become as high as those of the README.
    page = browser.new_page(
        viewport={"width": round(0.62 * width), "height": round(0.62 * height)},
        device_scale_factor=2,
    )
    page.set_content(f'<body style="margin:0;background:transparent">{svg}</body>')
    _save(page.screenshot(omit_background=True), path)


# --- TensorBoard ---------------------------------------------------------------------------------


def _photograph_tensorboard(browser: Browser, run: Path, path: Path) -> None:
    if not (run / "tb").is_dir():
        raise ConfigError(f"--run={run} holds no TensorBoard files", fix="a run directory")
    with tempfile.TemporaryDirectory(prefix="bitttt-board-") as folder:
        (Path(folder) / run.name).symlink_to((run / "tb").absolute())
        with _serve_tensorboard(folder) as url:
            page = browser.new_page(
                viewport={"width": 1280, "height": 1170}, device_scale_factor=1.5
            )
            layout = json.dumps(json.dumps(_LAYOUT))
            for key in ("_tb_global_settings", "_tb_global_settings.timeseries"):
                page.add_init_script(f"localStorage.setItem({json.dumps(key)}, {layout})")
            page.goto(f"{url}?tagFilter={quote(_TAGS)}#timeseries")
            page.wait_for_selector("card-view svg path")
            page.wait_for_load_state("networkidle")
            _save(page.screenshot(), path)


@contextlib.contextmanager
def _serve_tensorboard(folder: str) -> Iterator[str]:
    """Runs TensorBoard; yields its address."""
    program = shutil.which(
        "tensorboard", path=f"{Path(sys.executable).parent}:{os.environ['PATH']}"
    )
    if not program:
        raise ConfigError("there is no program `tensorboard`", fix="pip install tensorboard")
    process = subprocess.Popen(
        [program, f"--logdir={folder}", "--port=0", "--load_fast=false"],
        stderr=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stderr is not None
        lines: list[str] = []
        for line in process.stderr:
            lines.append(line)
            if address := re.search(r" at (http://\S+)", line):
                yield address[1]
                return
        raise ConfigError("TensorBoard didn't start", "".join(lines[-3:]))
    finally:
        process.terminate()
        process.communicate()


# --- both ----------------------------------------------------------------------------------------


@contextlib.contextmanager
def _open_browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    program = shutil.which("chromium") or shutil.which("google-chrome")
    if not program:
        raise ConfigError("there is no program `chromium`", fix="apt install chromium")
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=list(_BROWSER_FLAGS))
        yield browser
        browser.close()


def _save(png: bytes, path: Path) -> None:
    """Writes a picture with few colours, which flat surfaces don't need more of."""
    image: Any = Image.open(io.BytesIO(png)).convert("RGBA")
    image = image.quantize(_PNG_COLOURS, method=Image.Quantize.FASTOCTREE)
    partial = path.with_name(f".{path.name}")
    image.save(partial, format="png", optimize=True)
    partial.replace(path)
    print(f"{path}  {path.stat().st_size / 1000:.0f} kB")


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
