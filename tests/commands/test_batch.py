from __future__ import annotations

import csv
import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.commands.batch import main
from bitttt_jax.errors import ExitCode

Captured = pytest.CaptureFixture[str]
PROMPTS = ["def ", "日本", "return x", "a", "naïve", "b b b", "0: def", "x += 1"]


@pytest.fixture
def prompts(tmp_path: Path) -> Path:
    path = tmp_path / "prompts.txt"
    path.write_text("\n".join(PROMPTS) + "\n")
    return path


def run(model: Path, source: Path, output: Path, *flags: str) -> int:
    return main(
        [
            f"--model={model}",
            f"--input={source}",
            f"--output={output}",
            "--max_tokens=12",
            "--concurrency=3",
            *flags,
        ]
    )


def rows(path: Path) -> list[dict[str, Any]]:
    return [json.loads(line) for line in path.read_text().splitlines()]


def start(*flags: object) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitttt_jax", "batch", *map(str, flags)],
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "1"},
    )


def test_each_text_is_the_one_that_generate_writes(
    trained_run: Path, prompts: Path, tmp_path: Path, capsys: Captured
):
    from bitttt_jax.commands import generate

    output = tmp_path / "out.jsonl"
    assert run(trained_run, prompts, output, "--temperature=0") == ExitCode.OK
    found = rows(output)
    assert [row["id"] for row in found] == [str(n) for n in range(1, len(PROMPTS) + 1)]
    capsys.readouterr()
    for prompt, row in list(zip(PROMPTS, found, strict=True))[:3]:
        flags = [f"--model={trained_run}", f"--prompt={prompt}", "--max_tokens=12"]
        assert generate.main([*flags, "--temperature=0"]) == ExitCode.OK
        assert capsys.readouterr().out == f"{prompt}{row['text']}\n"
        assert row["prompt_tokens"] == 1 + len(prompt.encode())
        assert row["finish_reason"] == ("length" if row["tokens"] == 12 else "stop")


def test_formats_agree(trained_run: Path, prompts: Path, tmp_path: Path):
    items = [{"prompt": prompt, "note": "n"} for prompt in PROMPTS]
    sources = {"a.json": json.dumps(items), "a.jsonl": "\n".join(map(json.dumps, items))}
    for name, text in sources.items():
        (tmp_path / name).write_text(text)
    with (tmp_path / "a.csv").open("w", newline="") as file:
        writer = csv.DictWriter(file, ["prompt", "note"])
        writer.writeheader()
        writer.writerows(items)
    expected = tmp_path / "expected.jsonl"
    assert run(trained_run, prompts, expected) == ExitCode.OK
    for name in (*sources, "a.csv"):
        output = tmp_path / f"{name}.out.jsonl"
        assert run(trained_run, tmp_path / name, output) == ExitCode.OK
        assert output.read_bytes() == expected.read_bytes()


def test_items_that_fail(trained_run: Path, tmp_path: Path, capsys: Captured):
    source, output = tmp_path / "a.jsonl", tmp_path / "out.jsonl"
    lines = [
        '{"id": "good", "prompt": "a", "max_tokens": 2, "seed": 5}',
        "not JSON",
        '{"id": "no prompt"}',
        '{"id": "wrong", "prompt": "a", "top_p": 7}',
        '{"id": "half", "prompt": "\\ud800"}',
        '{"id": "long", "prompt": "a", "max_tokens": 3000000000}',
        '{"id": "chat", "messages": [{"role": "user", "content": "a"}]}',
        '{"id": "last", "prompt": "b", "max_tokens": 3}',
    ]
    source.write_text("\n".join(lines))
    assert run(trained_run, source, output) == ExitCode.DATA
    found = rows(output)
    assert [row["id"] for row in found] == [
        "good",
        "2",
        "no prompt",
        "wrong",
        "half",
        "long",
        "chat",
        "last",
    ]
    errors = [
        "",
        "isn't JSON",
        "no field 'prompt'",
        "top_p",
        "UTF-8",
        "most",
        "no chat template",
        "",
    ]
    for row, error in zip(found, errors, strict=True):
        assert bool(error) == ("error" in row) and error in row.get("error", "")
    assert found[0]["tokens"] <= 2 and found[-1]["tokens"] <= 3
    assert "8 items, 6 of them failed" in capsys.readouterr().err
    # Done is done: the failed ones count, and nothing is loaded.
    assert run(Path("/nowhere"), source, output, "--resume") == ExitCode.DATA
    assert rows(output) == found


def test_a_killed_process_goes_on(trained_run: Path, tmp_path: Path):
    """Killed again and again: the file at the end is the one of a process that nobody disturbed."""
    source = tmp_path / "a.jsonl"
    source.write_text("\n".join(json.dumps(f"{n} ") for n in range(40)))
    flags = [f"--model={trained_run}", f"--input={source}", "--max_tokens=100", "--concurrency=2"]
    whole, torn = tmp_path / "whole.csv", tmp_path / "torn.csv"
    assert main([*flags, f"--output={whole}"]) == ExitCode.OK
    for lines in (3, 15):
        process = start(*flags, f"--output={torn}", "--resume")
        deadline = time.monotonic() + 120
        while not torn.exists() or torn.read_bytes().count(b"\n") < lines:
            assert process.poll() is None and time.monotonic() < deadline
            time.sleep(0.001)
        process.kill()
        process.communicate()
        torn.write_bytes(torn.read_bytes() + b'7,"torn\n')
    assert whole.read_bytes() != torn.read_bytes()
    assert main([*flags, f"--output={torn}", "--resume"]) == ExitCode.OK
    assert torn.read_bytes() == whole.read_bytes()


def test_ctrl_c_keeps_what_is_done(trained_run: Path, tmp_path: Path):
    source, output = tmp_path / "a.txt", tmp_path / "out.txt"
    source.write_text("a\n" * 2000)
    process = start(f"--model={trained_run}", f"--input={source}", f"--output={output}")
    assert process.stderr
    deadline = time.monotonic() + 120
    while not output.exists() or not output.read_bytes():
        assert process.poll() is None and time.monotonic() < deadline
        time.sleep(0.01)
    process.send_signal(signal.SIGINT)
    _, err = process.communicate(timeout=120)
    assert process.returncode == ExitCode.INTERRUPTED
    assert b"--resume goes on" in err and b"Traceback" not in err
    assert output.read_bytes().endswith(b"\n")


def test_equal_prompts_get_different_texts(trained_run: Path, tmp_path: Path):
    source, output = tmp_path / "a.txt", tmp_path / "out.jsonl"
    source.write_text("a\na\n")
    assert run(trained_run, source, output, "--temperature=1", "--top_p=1") == ExitCode.OK
    first, second = rows(output)
    assert first["text"] != second["text"]


def test_templates_stops_logprobs_and_figures(trained_run: Path, tmp_path: Path, capsys: Captured):
    source, output = tmp_path / "a.csv", tmp_path / "out.jsonl"
    source.write_text("id,question\nx,why\n")
    flags = ["--template=<{question}>", "--logprobs=2", "--stats", "--temperature=0"]
    assert run(trained_run, source, output, *flags) == ExitCode.OK
    (row,) = rows(output)
    assert row["id"] == "x" and row["prompt_tokens"] == 1 + len("<why>")
    assert len(row["logprobs"]) == row["tokens"]
    for found in row["logprobs"]:
        (token, logprob), (_, second) = found["top"]
        assert logprob >= second and found["logprob"] <= 0
        assert token == found["token"] and logprob == found["logprob"]  # greedy
    err = capsys.readouterr().err
    assert "batch: 100 %" in err and "first token   p50 " in err and "pressure" in err
    stop = row["text"][3]
    output.unlink()
    assert run(trained_run, source, output, *flags, f"--stop={stop}") == ExitCode.OK
    (stopped,) = rows(output)
    assert stopped["text"] == row["text"][: row["text"].index(stop)]
    assert stopped["finish_reason"] == "stop"


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--input=nowhere.txt"], ExitCode.DATA, "nowhere.txt can't be read"),
        (["--output=out.md"], ExitCode.USAGE, "must end in"),
        (["--output=/nowhere/out.txt"], ExitCode.DATA, "can't be written"),
        (["--concurrency=0"], ExitCode.USAGE, "--concurrency must be at least 1"),
        (["--system=a"], ExitCode.USAGE, "--system goes with --chat"),
        (["--chat"], ExitCode.USAGE, "has no chat template"),
        (["--logprobs=1", "--output=a.csv"], ExitCode.USAGE, "goes with a .jsonl"),
        (["--temperature=-1"], ExitCode.USAGE, "temperature must be"),
        (["--stop="], ExitCode.USAGE, "--stop= would end"),
        (["--context=1"], ExitCode.USAGE, "--context must be at least 2"),
        (["--device=tpu"], ExitCode.USAGE, "no such device here"),
        (["--weights=int8"], ExitCode.USAGE, "was made here"),
    ],
)
def test_mistakes(
    trained_run: Path,
    prompts: Path,
    tmp_path: Path,
    capsys: Captured,
    flags: list[str],
    code: int,
    message: str,
):
    assert run(trained_run, prompts, tmp_path / "out.jsonl", *flags) == code
    err = capsys.readouterr().err
    assert "error: " in err and message in err


def test_an_output_that_is_there(
    trained_run: Path, prompts: Path, tmp_path: Path, capsys: Captured
):
    (tmp_path / "out.jsonl").write_text("")
    assert run(trained_run, prompts, tmp_path / "out.jsonl") == ExitCode.USAGE
    assert "Try: --resume" in capsys.readouterr().err
