"""The documentation refers to what exists: files, links, commands, flags, keys, presets, tags."""

from __future__ import annotations

import dataclasses
import functools
import importlib.util
import itertools
import re
import shlex
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import ModuleType
from typing import get_args

import pytest
import tyro

from bitttt_jax import train_flags
from bitttt_jax.__main__ import COMMANDS
from bitttt_jax.commands import (
    batch,
    bench,
    chat,
    convert,
    doctor,
    evaluate,
    generate,
    inspect,
    prepare,
    serve,
    studio,
    watch,
)
from bitttt_jax.config import DataConfig, SourceConfig, TrainConfig
from bitttt_jax.config_loading import flatten, load_config, preset_names, to_json
from bitttt_jax.errors import ConfigError, ExitCode
from bitttt_jax.runs import resume
from bitttt_jax.runs.status import RunStatus, State

ROOT = Path(__file__).parent.parent
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
PACKAGE = ROOT / "bitttt_jax"

FENCE = re.compile(r"^```(\w*)\n(.*?)^```$", re.MULTILINE | re.DOTALL)
CODE = re.compile(r"`([^`]+)`")
LINK = re.compile(r"\]\(([^)\s]+)\)")
UNITS = {"thousand": 1e3, "million": 1e6, "billion": 1e9}


# --- reading the pages ---------------------------------------------------------------------------


def blocks(page: Path, language: str) -> list[str]:
    """Fenced code; that without a language is commands."""
    return [text for name, text in FENCE.findall(page.read_text()) if name == language]


def commands() -> list[str]:
    pages = [*PAGES, ROOT / "CONTRIBUTING.md"]
    texts = itertools.chain.from_iterable(blocks(page, "") for page in pages)
    return [line for text in texts for line in text.splitlines() if line.strip()]


def inline_code(page: Path) -> list[str]:
    prose = FENCE.sub("", page.read_text())
    return [" ".join(code.split()) for code in CODE.findall(prose)]


def table(page: Path, header: str) -> list[list[str]]:
    """Cells of the table whose first header cell this is, without the code marks."""
    rows = iter(page.read_text().splitlines())
    for line in rows:
        if line.startswith(f"| {header} |"):
            next(rows)
            body = itertools.takewhile(lambda row: row.startswith("|"), rows)
            return [[cell.strip() for cell in row.strip("|").split(" | ")] for row in body]
    raise AssertionError(f"{page.name} has no table that begins with {header}")


def heading_anchors(page: Path) -> set[str]:
    headings = re.findall(r"^#+ (.*)$", FENCE.sub("", page.read_text()), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


# --- a place where the examples work -------------------------------------------------------------


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with the files that the examples use: my.py, a run, prepared tokens."""
    from bitttt_jax.data import prepare as prepared

    folder = tmp_path_factory.mktemp("place")
    for page in PAGES:
        for text in blocks(page, "python"):
            if name := re.match(r"# (\w+\.py)\n", text):
                (folder / name[1]).write_text(text)
    run = folder / "runs" / "quickstart"
    run.mkdir(parents=True)
    (run / "config.json").write_text(to_json(load_config("quickstart")))
    (run / "metrics.jsonl").write_text('{"t": 1.0, "step": 10, "train/loss": 5.0}\n')
    (folder / "book.txt").write_text("It was a dark and stormy night. " * 50)
    sources = (SourceConfig(path=str(folder / "book.txt")),)
    prepared.prepare(DataConfig(sources=sources, validation_fraction=0.0), folder / "tokens")
    return folder


def parse_with(flags: type) -> Callable[[Sequence[str]], object]:
    return lambda args: tyro.cli(flags, args=list(args), use_underscores=True)


@functools.cache
def screenshots() -> ModuleType:
    path = ROOT / "docs" / "make_screenshots.py"
    spec = importlib.util.spec_from_file_location("make_screenshots", path)
    assert spec and spec.loader
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module  # where dataclasses look for their annotations
    spec.loader.exec_module(module)
    return module


def parse_launch(args: Sequence[str]) -> None:
    own = launcher_flags()
    for number, arg in enumerate(args):
        if arg == "--":
            return parse_command(args[number + 1 :])
        if arg.partition("=")[0] not in own:
            rest = [other for other in args if other.partition("=")[0] not in own]
            train_flags.parse_train_flags(rest)
            return None
    return None


def launcher_flags() -> set[str]:
    # --sim_devices is also a flag of `train`, which explains it.
    text = (ROOT / "launch.sh").read_text()
    return set(re.findall(r"^  (--\w+)", text, re.MULTILINE)) - {"--sim_devices"}


def parse_command(argv: Sequence[str]) -> None:
    """Reads a command's flags as the command itself does; raises if it would refuse them."""
    match list(argv):
        case ["bitttt", "train", *args] | ["python", "-m", "bitttt_jax.train", *args]:
            train_flags.parse_train_flags(args)
        case ["bitttt", "generate", *args]:
            parse_with(generate.Flags)(args)
        case ["bitttt", "evaluate", *args]:
            parse_with(evaluate.Flags)(args)
        case ["bitttt", "prepare", *args]:
            parse_with(prepare.Flags)(args)
        case ["bitttt", "convert", *args]:
            parse_with(convert.Flags)(args)
        case ["bitttt", "bench", *args]:
            parse_with(bench.Flags)(args)
        case ["bitttt", "chat", *args]:
            parse_with(chat.Flags)(args)
        case ["bitttt", "serve", *args]:
            parse_with(serve.Flags)(args)
        case ["bitttt", "batch", *args]:
            parse_with(batch.Flags)(args)
        case ["bitttt", "inspect", *args]:
            parse_with(inspect.Flags)(args)
        case ["bitttt", "doctor", *args]:
            parse_with(doctor.Flags)(args)
        case ["bitttt", "watch", *args]:
            parse_with(watch.Flags)(args)
        case ["bitttt", "studio", *args]:
            parse_with(studio.Flags)(args)
        case ["./launch.sh", *args]:
            parse_launch(args)
        case ["python", "docs/make_screenshots.py", *args]:
            screenshots().parse_flags(args)
        case ["python", "release/check.py", wheel, *args]:
            assert wheel == "dist/*.whl"
            assert all(re.fullmatch(r"--python=python3\.\d+", arg) for arg in args)
        case ["make", target]:
            assert re.search(rf"^{target}:", (ROOT / "Makefile").read_text(), re.MULTILINE)
        case ["tensorboard", logdir]:
            assert logdir.startswith("--logdir=")
        case ["pip", "install", "-e", extra]:
            assert extra[2:-1] in extras(), extra
        case _:
            raise AssertionError(f"this test doesn't know {shlex.join(argv)}")


def extras() -> set[str]:
    text = (ROOT / "setup.cfg").read_text().partition("[options.extras_require]")[2]
    return set(re.findall(r"^(\w+) =$", text.partition("\n[")[0], re.MULTILINE))


def accepts(argv: Sequence[str]) -> bool:
    """Whether a command would start; help and --print_config end it successfully before that."""
    try:
        parse_command(argv)
    except SystemExit as end:
        return end.code in (None, 0)
    return True


# --- tests ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("line", commands())
def test_commands_are_accepted(line: str, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    assert accepts(shlex.split(line, comments=True))


def test_the_check_of_commands_finds_mistakes(place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    mistakes = [
        "bitttt train --config=quickstrt",
        "bitttt generate --model=runs/a --tokens=3",
        "bitttt prepare --sources=a",
        "./launch.sh --restrat --config=debug",
        "./launch.sh --restart --config=debug --config.stps=3",
        "make tests",
        "pip install -e '.[gpu]'",
        "python docs/make_screenshots.py --runs=a",
    ]
    for line in mistakes:
        with pytest.raises((ConfigError, AssertionError)):
            assert accepts(shlex.split(line))


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_commands_and_flags_in_the_text(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    for code in inline_code(page):
        argv = shlex.split(code) if re.match(r"(--|bitttt |\./launch|pip )", code) else []
        if argv[:1] == ["bitttt"] and len(argv) == 2:
            assert argv[1] in COMMANDS, code
        elif argv and not argv[0].startswith("--") and not re.search("=[A-Z]", code):
            assert accepts(argv), code
        elif argv and all(re.match(r"--config\.[a-z]", arg) for arg in argv):
            assert accepts(["bitttt", "train", "--config=quickstart", *argv]), code
        for arg in argv:
            if arg.startswith("--") and "KEY" not in arg:
                assert arg.partition("=")[0] in known_flags(), code


def known_flags() -> set[str]:
    known = {f"--{name}" for name in train_flags._define_flags()} | launcher_flags()
    commands = (
        generate,
        chat,
        batch,
        evaluate,
        prepare,
        convert,
        bench,
        inspect,
        doctor,
        watch,
        studio,
        serve,
    )
    for flags in (command.Flags for command in (*commands, screenshots())):
        known |= {f"--{field.name}" for field in dataclasses.fields(flags)}
    return known | {f"--config.{key}" for key in flatten(TrainConfig())} | {"--help"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_configuration_keys_in_the_text(page: Path):
    keys = set(flatten(TrainConfig()))
    groups = {key[: end.start()] for key in keys for end in re.finditer(r"\.", key)}
    roots = "|".join(sorted({group.partition(".")[0] for group in groups}))
    for code in inline_code(page):
        if code.endswith(".safetensors"):
            continue  # a file
        if match := re.fullmatch(rf"((?:{roots})(?:\.\w+)+)(=.*)?", code):
            assert match[1].replace(".N.", ".0.") in keys | groups, code


@pytest.mark.parametrize("page", [*PAGES, ROOT / "CONTRIBUTING.md"], ids=lambda page: page.name)
def test_links_lead_somewhere(page: Path):
    for link in LINK.findall(page.read_text()):
        if link.startswith("https://"):
            continue
        name, _, anchor = link.partition("#")
        target = page.parent / name if name else page
        assert target.exists(), link
        assert not anchor or anchor in heading_anchors(target), link


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_files_in_the_text_exist(page: Path, place: Path):
    for code in inline_code(page):
        if re.fullmatch(r"[\w./-]+\.(py|sh|cfg|toml|md)", code):
            assert any((base / code).exists() for base in (ROOT, PACKAGE, place)), code
        elif re.fullmatch(r"(bitttt_jax|configs|tests|benchmarks|experiments|docs)/[\w/]*", code):
            assert (ROOT / code).is_dir(), code


def test_every_page_is_linked_and_every_package_named():
    readme = (ROOT / "README.md").read_text()
    assert {f"docs/{page.name}" for page in PAGES[1:]} <= set(LINK.findall(readme))
    packages = {path.parent.name for path in PACKAGE.glob("*/__init__.py")}
    assert {name for name in packages if f"`bitttt_jax/{name}/`" not in readme} == set()


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_python_examples_run(page: Path, place: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.chdir(place)
    for text in blocks(page, "python"):
        exec(compile(text, page.name, "exec"), {"__name__": "example"})


def test_presets():
    rows = {row[0].strip("`"): row for row in table(ROOT / "docs" / "configuration.md", "preset")}
    assert set(rows) == set(preset_names())
    names = {"ttt_linear": "TTT-Linear", "ttt_mlp": "TTT-MLP", "attention": "attention"}
    for name, (_, mixers, parameters, tokens) in rows.items():
        docstring = (ROOT / "configs" / f"{name}.py").read_text()
        assert f"\nParameters: {parameters}\n" in docstring, name
        config = load_config(name)
        assert mixers.removesuffix(" in turns").split(" and ") == [
            names[mixer] for mixer in config.model.mixers
        ]
        number, unit = tokens.split()
        in_all = config.steps * config.data.batch_size * config.data.seq_len
        assert float(number) * UNITS[unit] == pytest.approx(in_all, rel=0.03), name


def test_exit_codes():
    rows = table(ROOT / "docs" / "configuration.md", "code")
    assert {(int(row[0]), row[1].strip("`")) for row in rows} == {
        (int(code), code.name) for code in ExitCode
    }


def test_what_makes_another_run():
    text = (ROOT / "docs" / "configuration.md").read_text()
    identity = ", ".join(f"`{key}`" for key in resume._IDENTITY[:-1])
    assert f"different {identity} or `{resume._IDENTITY[-1]}`" in text
    assert all(f"`{key}`" in text for key in resume._FREE)
    modes = {
        row[0].partition("`")[2].partition("`")[0]
        for row in table(ROOT / "docs" / "configuration.md", "`--resume=`")
    }
    assert modes == set(get_args(resume.ResumeMode))


def test_status_fields():
    rows = table(ROOT / "docs" / "run_directory.md", "field")
    fields = {name for row in rows for name in CODE.findall(row[0])}
    assert fields == {field.name for field in dataclasses.fields(RunStatus)}
    assert set(CODE.findall(rows[0][1])) == set(get_args(State))


def test_tags():
    rows = table(ROOT / "docs" / "run_directory.md", "tag")
    documented = {tag for row in rows for tag in CODE.findall(row[0])}
    source = "\n".join(path.read_text() for path in PACKAGE.rglob("*.py"))
    groups = "|".join({tag.partition("/")[0] for tag in documented if "/" in tag})
    assert set(re.findall(rf'"((?:{groups})/\w+)"', source)) <= documented
    names = {tag.rpartition("/")[2] for tag in documented}
    assert {name for name in names if not re.search(rf"\b{name}\b", source)} == set()


def test_every_command_has_an_example():
    lines = (ROOT / "README.md").read_text().splitlines()
    shown = {line.split()[1] for line in lines if line.startswith("bitttt ")}
    assert shown == set(COMMANDS)


def test_pictures_are_small():
    for name in ("console.png", "tensorboard.png"):
        assert (ROOT / "docs" / "images" / name).stat().st_size < 300_000


def test_the_screenshot_script_explains_itself():
    line = re.search(r"^    (python .*)$", screenshots().__doc__, re.MULTILINE)
    assert line and accepts(shlex.split(line[1]))
    flags, overrides = screenshots().parse_flags(["--config=debug", "--config.steps=5"])
    assert (flags.config, overrides) == ("debug", ["--config.steps=5"])
