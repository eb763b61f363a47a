"""The pages in a real browser: nothing from outside, no complaints, keyboard, narrow and wide."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import os
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import pytest

from bitttt_jax import errors
from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import describe
from bitttt_jax.runs.failures import INTERRUPTED
from tests.studio.browser import (
    FLAGS,
    HOSTILE,
    ROOT,
    Window,
    chromium,
    open_studio,
    write_failed_run,
    write_run,
)

if TYPE_CHECKING:
    from playwright.sync_api import Browser

STATIC = ROOT / "bitttt_jax" / "studio" / "static"
SCRIPTS = sorted(STATIC.glob("js/**/*.js"))
LANGUAGES = ("en", "ja")
PAGES = ("runs", "run/first", "new", "data", "play", "export", "system")

needs_browser = pytest.mark.skipif(
    chromium() is None or importlib.util.find_spec("playwright") is None,
    reason="needs chromium and playwright",
)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    from playwright.sync_api import sync_playwright

    with sync_playwright() as playwright:
        opened = playwright.chromium.launch(executable_path=chromium(), args=list(FLAGS))
        yield opened
        opened.close()


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    runs = tmp_path_factory.mktemp("studio") / "runs"
    write_run(runs, "first")
    write_run(runs, "second", state="stopped", steps=200)
    write_failed_run(runs, "too-large")
    write_run(runs, HOSTILE.replace("/", "|"))
    with open_studio(runs) as address:
        yield address


# --- words and files -----------------------------------------------------------------------------


def words(name: str) -> dict[str, str]:
    found: dict[str, str] = json.loads((STATIC / "i18n" / f"{name}.json").read_text("utf-8"))
    return found


def test_both_languages_have_the_same_keys():
    english, japanese = words("en"), words("ja")
    assert list(english) == list(japanese)
    for key, text in english.items():
        places = re.findall(r"\{\w+\}", text)
        assert sorted(re.findall(r"\{\w+\}", japanese[key])) == sorted(places), key


def test_every_key_that_is_used_exists():
    known = set(words("en"))
    used = {
        (path.name, key)
        for path in SCRIPTS
        for key in re.findall(r'\bt\(\s*"([^"]+)"', path.read_text("utf-8"))
    }
    assert {(name, key) for name, key in used if key not in known} == set()
    # Keys that are put together have at least one string with their beginning.
    beginnings = {
        beginning
        for path in SCRIPTS
        for beginning in re.findall(r"\b(?:t|translated)\(`([\w.]+)\$\{", path.read_text("utf-8"))
    }
    assert beginnings
    assert {b for b in beginnings if not any(key.startswith(b) for key in known)} == set()


def test_every_string_is_used():
    texts = "\n".join(path.read_text("utf-8") for path in SCRIPTS)
    whole = set(re.findall(r'"([a-z][\w.-]+)"', texts))
    beginnings = tuple(set(re.findall(r"`([\w.]+)\$\{", texts)))
    assert [key for key in words("en") if key not in whole and not key.startswith(beginnings)] == []


def test_every_kind_of_failure_is_explained():
    classes = (error for error in vars(errors).values() if isinstance(error, type))
    kinds = {error.kind for error in classes if issubclass(error, errors.BittttError)} - {"error"}
    kinds |= {"unexpected", INTERRUPTED, "killed", "lost", "not_responding", "missing_extra"}
    needed = {f"card.{part}.{kind}" for part in ("kind", "means") for kind in kinds}
    assert needed <= set(words("en"))


@pytest.mark.parametrize("language", LANGUAGES)
def test_the_words_of_fields_belong_to_fields(language):
    keys = {key.name for key in describe(TrainConfig())}
    named = set(words(f"fields.{language}"))
    assert named <= keys
    assert language == "en" or named == keys


def test_vendored_files_are_what_they_were():
    lines = (STATIC / "vendor" / "SHA256SUMS").read_text().splitlines()
    hashes = {name: digest for digest, name in (line.split() for line in lines)}
    files = {path.name: path for path in (STATIC / "vendor").iterdir() if path.name in hashes}
    assert files.keys() == hashes.keys()
    for name, path in files.items():
        assert hashlib.sha256(path.read_bytes()).hexdigest() == hashes[name]


def test_pages_hold_no_inline_scripts_and_no_html_from_text():
    index = (STATIC / "index.html").read_text()
    assert not re.search(r"<script(?![^>]*\ssrc=)|<style|\sstyle=|\son\w+=", index)
    assert not re.search(r'(?:src|href)="(?:/|https?:)', index)
    forbidden = re.compile(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(")
    assert [path.name for path in SCRIPTS if forbidden.search(path.read_text("utf-8"))] == []


# --- in the browser ------------------------------------------------------------------------------


@needs_browser
@pytest.mark.parametrize("language", LANGUAGES)
@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_every_page_loads_without_complaint(browser, url, language, scheme):
    window = Window(browser, url, locale=language, color_scheme=scheme)
    for page in PAGES:
        window.visit(page)
        window.page.wait_for_timeout(150)
    assert window.page.locator("html").get_attribute("lang") == language
    window.close()


@needs_browser
@pytest.mark.parametrize("width", [400, 3840])
def test_nothing_scrolls_sideways(browser, url, width):
    window = Window(browser, url, viewport={"width": width, "height": 900})
    for page in (*PAGES, "run/too-large", "run/first/log", "run/first/config"):
        window.visit(page)
        window.page.wait_for_timeout(150)
        assert window.overflow() <= 0, page
    window.close()


@needs_browser
def test_text_of_models_and_logs_stays_text(browser, url):
    window = Window(browser, url)
    page = window.page
    page.locator(".run", has_text="onerror").wait_for()
    page.locator(".run-name a", has_text="onerror").click()
    page.locator("h1", has_text="<img").wait_for()
    for tab, place in (("samples", ".samples pre"), ("log", ".log"), ("config", "table")):
        page.click(f"[role=tab][id$={tab}]")
        page.locator(place, has_text="onerror").first.wait_for()
    window.visit("run/too-large")
    page.locator(".card", has_text="onerror").wait_for()
    assert page.evaluate("window.hacked") is None
    assert page.locator("main img, main script").count() == 0
    window.close()


@needs_browser
def test_a_run_shows_everything_again_after_a_reload(browser, url):
    window = Window(browser, url)
    window.visit("run/first/checkpoints")
    window.page.reload()
    window.page.locator("[role=tab][id$=checkpoints][aria-selected=true]").wait_for()
    window.page.click("[role=tab][id$=curves]")
    window.page.locator(".legend b", has_text=re.compile(r"2\.\d{3}")).first.wait_for()
    window.page.click("[role=tab][id$=log]")
    window.page.locator(".log", has_text="step=10 loss=4.6").wait_for()
    window.close()


@needs_browser
def test_a_card_changes_the_right_field(browser, url):
    window = Window(browser, url)
    window.visit("run/too-large")
    window.page.locator(".card[data-kind=out_of_memory] [data-action=halve_batch]").click()
    assert window.page.locator("[data-key='data.batch_size']").input_value() == "4"
    window.page.locator("[data-field='data.batch_size'] .dot").wait_for()
    window.page.locator("#command", has_text="--config.data.batch_size=4").wait_for()
    window.page.click("[data-field='data.batch_size'] .reset")
    assert window.page.locator("[data-key='data.batch_size']").input_value() == "8"
    window.close()


@needs_browser
def test_form_and_command_follow_each_other(browser, url):
    window = Window(browser, url)
    window.visit("new?preset=debug")
    page = window.page
    page.fill("[data-key=steps]", "70")
    page.locator("#command", has_text="--config.steps=70").wait_for()
    page.fill("[data-key=steps]", "many")
    page.locator("[data-field=steps] .problem:visible").wait_for()
    assert page.locator("#start-run").is_disabled()
    page.click("details:has(#command-paste) summary")
    page.fill("#command-paste", "bitttt train --config=debug --config.optim.clip_norm=0.5")
    page.click("#command-read")
    page.locator("[data-field='optim.clip_norm'] .dot").wait_for()  # an advanced one comes up
    assert page.locator("[data-key=steps]").input_value() == "60"
    page.fill("#field-search", "z_loss")
    page.locator("[data-field='optim.z_loss']").wait_for()
    assert page.locator(".field:visible").count() == 1
    window.close()


@needs_browser
def test_files_and_folders_are_uploaded(browser, tmp_path):
    book = tmp_path / "book"
    (book / "part").mkdir(parents=True)
    (book / "one.txt").write_text("The first chapter.")
    (book / "part" / "two.txt").write_text("The second chapter.")
    (book / ".hidden").write_text("not text")
    runs = tmp_path / "runs"
    with open_studio(runs) as address:
        window = Window(browser, address)
        window.visit("data")
        window.page.get_by_label("Choose files").set_input_files(book / "one.txt")
        window.page.locator(".sources code", has_text="uploads/one.txt").wait_for()
        window.page.get_by_label("Choose a folder").set_input_files(book)
        window.page.locator(".sources code", has_text="uploads/book").wait_for()
        window.close()
    uploads = runs / ".studio" / "uploads"
    names = {path.relative_to(uploads).as_posix() for path in uploads.rglob("*") if path.is_file()}
    assert names == {"one.txt", "book/one.txt", "book/part__two.txt"}


@needs_browser
def test_the_keyboard_reaches_everything(browser, url):
    window = Window(browser, url)
    page = window.page
    page.keyboard.press("Tab")
    assert page.evaluate("document.activeElement.className") == "skip-link"
    page.keyboard.press("Enter")
    assert page.evaluate("document.activeElement.id") == "main"
    page.keyboard.press("n")
    page.locator("main[data-page=new]").wait_for()
    page.keyboard.press("?")
    page.locator("dialog[open] kbd").first.wait_for()
    page.keyboard.press("Escape")
    page.locator("dialog").wait_for(state="detached")
    window.visit("run/first")
    page.locator("[role=tab][aria-selected=true]").focus()
    page.keyboard.press("ArrowRight")
    assert page.evaluate("document.activeElement.getAttribute('aria-selected')") == "true"
    page.locator(".samples").wait_for()
    unnamed = page.evaluate(
        "[...document.querySelectorAll('button, input, select, textarea')]"
        ".filter(e => !e.labels?.length && !e.ariaLabel && !e.textContent.trim()).length"
    )
    assert unnamed == 0
    window.close()


@needs_browser
def test_language_and_theme_are_kept(browser, url):
    window = Window(browser, url, locale="en", color_scheme="light")
    page = window.page
    page.click(".language button[lang=ja]")
    page.locator("h1", has_text="学習一覧").wait_for()
    for _ in range(2):
        page.click(".theme")
    page.reload()
    page.locator("h1", has_text="学習一覧").wait_for()
    assert page.locator("html").get_attribute("data-theme") == "dark"
    window.close()


@needs_browser
def test_several_tabs_stay_alive(browser, url):
    window = Window(browser, url)
    pages = [window.page]
    for number in range(7):
        pages.append(window.context.new_page())
        pages[-1].goto(f"{url.split('?')[0]}#/{PAGES[number]}")
    for page in pages:
        page.bring_to_front()
        page.locator("nav a[aria-current]").wait_for()
        assert page.evaluate("fetch('api/info').then(answer => answer.status)") == 200
    window.close()


@needs_browser
@pytest.mark.parametrize("count", [64, 256])
def test_many_devices_stay_readable(browser, url, count):
    window = Window(browser, url, viewport={"width": 1000, "height": 800})
    script = """async count => {
      const { drawDevices } = await import("./static/js/components/devices.js");
      const device = index => ({ host: `host${Math.floor(index / 8)}`, index: index % 8,
                                 used: index === 13 ? 79 : 40, limit: 80 });
      const main = document.getElementById("main");
      drawDevices(main, [...Array(count).keys()].map(device));
      const boxes = [...main.querySelectorAll(".device")].map(e => e.getBoundingClientRect());
      return { cells: boxes.length, narrowest: Math.min(...boxes.map(box => box.width)),
               height: main.querySelector(".devices").offsetHeight, text: main.innerText };
    }"""
    drawn = window.page.evaluate(script, count)
    assert drawn["cells"] == count and drawn["narrowest"] >= 8 and drawn["height"] < 700
    assert "host1:5" in drawn["text"] and "99 %" in drawn["text"]
    window.close()


# --- the whole way -------------------------------------------------------------------------------


@needs_browser
@pytest.mark.slow
@pytest.mark.parametrize("language", LANGUAGES)
def test_the_whole_way_on_a_fresh_folder(tmp_path: Path, language: str):
    script = ROOT / "docs" / "make_studio_screenshots.py"
    flags = [f"--images={tmp_path}", "--languages", language, "--steps=120"]
    done = subprocess.run(
        [sys.executable, script, *flags],
        env=os.environ | {"PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert {
        path.name for path in (ROOT / "docs" / "images" / "studio").glob(f"*.{language}.png")
    } <= {path.name for path in tmp_path.glob("*.png")}
