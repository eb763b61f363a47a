from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

from bitttt_jax.commands.prepare import main
from bitttt_jax.data.shards import TokenDataset, load_tokenizer
from bitttt_jax.errors import ExitCode


@pytest.fixture
def lines(tmp_path: Path) -> Path:
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(f'{{"body": "document number {n}"}}\n' for n in range(50)))
    return path


def test_prepares_and_reports(
    tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    output = tmp_path / "tokens"
    text = tmp_path / "more.txt"
    text.write_text("more text")
    flags = [f"--source={lines}", f"--source={text}", f"--output={output}", "--field=body"]
    flags += ["--tokenizer=bpe", "--vocab_size=270", "--validation_fraction=0.2"]
    assert main(flags) == 0
    train = TokenDataset.open(output, "train")
    assert [source.name for source in train.sources] == [str(lines), str(text)]
    assert train.manifest.vocab_size == 270
    out, err = capsys.readouterr()
    assert f"train      {lines}: {train.parts[0].documents} documents, " in out
    assert "bytes/token" in out and "skipped    none" in out
    assert f"encode {text}: 100 %\n" in err and "\r" not in err and "\x1b" not in err


def test_skipped_documents_are_reported(
    tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    with lines.open("a") as file:
        file.write("{broken\n{broken\n")
    flags = [f"--source={lines}", f"--output={tmp_path / 'tokens'}", "--field=body"]
    assert main(flags) == ExitCode.DATA
    err = capsys.readouterr().err
    assert f"error: {lines}:51: invalid JSON\n" in err and "Traceback" not in err
    assert not (tmp_path / "tokens").exists()
    assert main([*flags, "--on_error=skip"]) == 0
    assert "skipped    2 invalid JSON" in capsys.readouterr().out


def test_conversations_and_cleaning(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    row = {"instruction": "Hi", "output": "Ho  \n\n\n\nHo"}
    path = tmp_path / "chats.json"
    path.write_text(json.dumps([row, row, {**row, "instruction": "Hey"}]))
    flags = [f"--source={path}", "--validation_fraction=0", "--kind=messages", "--clean"]
    assert main([*flags, f"--output={tmp_path / 'a'}", "--chat_template=chatml"]) == 0
    out = capsys.readouterr().out
    assert f"train      {path}: 2 documents, " in out
    assert f"counted    {path}: 14 of the tokens, in replies\n" in out  # Ho, 2 ends, Ho, <|im_end|>
    assert "skipped    1 duplicate\ncleaned    2 whitespace\n" in out
    tokenizer = load_tokenizer(tmp_path / "a")
    assert tokenizer.token_id("<|im_end|>") == 258
    assert main([*flags, f"--output={tmp_path / 'b'}", "--chat_template=nothing"]) == ExitCode.USAGE
    assert "no chat template 'nothing'" in capsys.readouterr().err


def test_bar_on_a_terminal(
    tmp_path: Path,
    lines: Path,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    folder = tmp_path / "[red]"  # no markup
    folder.mkdir()
    source = lines.rename(folder / "r.jsonl")
    monkeypatch.setenv("COLUMNS", "300")
    assert main([f"--source={source}", f"--output={tmp_path / 'tokens'}", "--field=body"]) == 0
    err = capsys.readouterr().err
    assert f"encode {source}" in err and "100%" in err


def test_verify(tmp_path: Path, lines: Path, capsys: pytest.CaptureFixture[str]) -> None:
    output = tmp_path / "tokens"
    assert main([f"--source={lines}", f"--output={output}", "--field=body"]) == 0
    assert main([f"--verify={output}"]) == 0
    assert "size and SHA-256" in capsys.readouterr().out
    path = output / "00-train-00000.bin"
    path.write_bytes(b"\7" + path.read_bytes()[1:])
    assert main([f"--verify={output}"]) == ExitCode.DATA
    assert f"error: {path} is damaged" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        ([], "--source and --output are needed"),
        (["--source=x"], "--source and --output are needed"),
        (["--source=x", "--output=y", "--vocab_size=300"], "has no effect on --tokenizer=bytes"),
        (["--source=x", "--output=y", "--validation_fraction=2"], "must be in [0, 1)"),
        (["--verify=x", "--output=y"], "--verify"),
    ],
)
def test_contradictory_flags(
    flags: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(flags) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_unknown_flag_gets_a_suggestion(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as caught:
        main(["--vocab_siz=3"])
    assert caught.value.code == ExitCode.USAGE
    assert "--vocab_size" in capsys.readouterr().err


def test_help_is_quick_and_preparing_needs_no_jax(tmp_path: Path, lines: Path) -> None:
    script = """
import sys
from bitttt_jax.commands.prepare import main
try:
    main(["--help"])
except SystemExit as stop:
    assert stop.code == 0
assert not {"jax", "grain", "tokenizers", "numpy", "pydantic"} & set(sys.modules)
assert main(sys.argv[1:]) == 0
assert not {"jax", "grain", "datasets"} & set(sys.modules)
"""
    flags = [f"--source={lines}", f"--output={tmp_path / 'tokens'}", "--field=body"]
    run = subprocess.run(
        [sys.executable, "-c", script, *flags],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert run.returncode == 0, run.stderr
    assert "usage: bitttt prepare" in run.stdout


def test_the_configuration_s_keys(tmp_path: Path, lines: Path) -> None:
    more = tmp_path / "a,b=c.txt"
    more.write_text("more text, " * 20)
    output = tmp_path / "tokens"
    keys = {
        "sources.0.path": lines,
        "sources.0.field": "body",
        "sources.0.weight": 3,
        "sources.1.path": more,
        "tokenizer.kind": "bpe",
        "tokenizer.vocab_size": 270,
        "clean.whitespace": True,
    }
    overrides = [f"--config.data.{key}={value}" for key, value in keys.items()]
    assert main([f"--output={output}", *overrides]) == 0
    config = TokenDataset.open(output, "train").manifest.config
    assert [source.path for source in config.sources] == [str(lines), str(more)]
    assert (config.sources[0].field, config.sources[0].weight) == ("body", 3.0)
    assert (config.tokenizer.vocab_size, config.clean.whitespace) == (270, True)


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config.data.sources.0.paht=x"], "did you mean"),
        (["--config.data.validation_fraction=2"], "validation_fraction"),
        (["--config.data.clean.unicode=True"], "--source and --output are needed"),
    ],
)
def test_wrong_keys(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], flags: list[str], message: str
) -> None:
    sources = [] if "unicode" in flags[0] else [f"--source={tmp_path}"]
    assert main([f"--output={tmp_path / 'tokens'}", *sources, *flags]) == ExitCode.USAGE
    assert message in capsys.readouterr().err
