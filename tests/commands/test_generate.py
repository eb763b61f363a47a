from __future__ import annotations

import io
import os
import re
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from bitttt_jax.commands.generate import main
from bitttt_jax.errors import ExitCode
from bitttt_jax.inference.load import load_run
from bitttt_jax.inference.sampling import SamplingConfig

Captured = pytest.CaptureFixture[str]


def run(capsys: Captured, model: Path, *flags: str) -> str:
    """What the command prints."""
    assert main([f"--model={model}", *flags]) == ExitCode.OK
    return capsys.readouterr().out


def start(*argv: str) -> subprocess.Popen[bytes]:
    return subprocess.Popen(
        [sys.executable, "-m", "bitttt_jax", "generate", *argv],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=os.environ | {"PYTHONPATH": ":".join(sys.path), "JAX_NUM_CPU_DEVICES": "1"},
    )


def test_greedy_text_is_the_models(trained_run: Path, capsys: Captured):
    flags = ["--prompt=def ", "--temperature=0", "--max_tokens=40"]
    out = run(capsys, trained_run, *flags)
    sampling = SamplingConfig(temperature=0)
    expected = load_run(trained_run).generate("def ", max_tokens=40, sampling=sampling)
    assert out == f"def {expected.text}\n"
    assert run(capsys, trained_run, *flags) == out


def test_the_seed_decides(trained_run: Path, capsys: Captured):
    texts = [run(capsys, trained_run, "--temperature=1", f"--seed={seed}") for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]


def test_the_text_at_the_end_is_the_streamed_one(trained_run: Path, capsys: Captured):
    flags = ["--prompt=naïve 🎉", "--max_tokens=50"]
    streamed = run(capsys, trained_run, *flags)
    assert streamed.startswith("naïve 🎉")
    assert run(capsys, trained_run, *flags, "--no_stream") == streamed


def test_prompt_from_stdin(trained_run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    expected = run(capsys, trained_run, "--prompt=日本\n", "--max_tokens=9")
    for data in ("日本\n".encode(), "\ufeff日本\n".encode()):
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(data), "ascii"))
        assert run(capsys, trained_run, "--prompt=-", "--max_tokens=9") == expected
    monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(b"ab\xff")))
    assert main([f"--model={trained_run}", "--prompt=-"]) == ExitCode.DATA
    assert "error: the prompt isn't valid UTF-8 at character 2" in capsys.readouterr().err


def test_an_empty_prompt_starts_a_document(trained_run: Path, capsys: Captured):
    out = run(capsys, trained_run, "--temperature=0", "--max_tokens=5", "--step=2")
    sampling = SamplingConfig(temperature=0)
    expected = load_run(trained_run, step=2).generate([256], max_tokens=5, sampling=sampling)
    assert out == f"{expected.text}\n"


def test_statistics(trained_run: Path, capsys: Captured):
    for limit, count in ((1, "1 tokens"), (30, r"\d+ tokens, the later ones at \d+ tok/s")):
        assert main([f"--model={trained_run}", "--prompt=abc", f"--max_tokens={limit}"]) == 0
        assert re.fullmatch(
            r"step 4 loaded in \d+\.\d s, 4 prompt tokens, "
            rf"first token after \d+\.\d\d s with compilation, {count}\n",
            capsys.readouterr().err,
        )


def test_figures_and_logprobs(trained_run: Path, capsys: Captured):
    flags = ["--prompt=abc", "--max_tokens=40", "--temperature=0", "--stats", "--logprobs=3"]
    assert main([f"--model={trained_run}", *flags]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert out.startswith("abc")
    found = [line.split() for line in err.splitlines() if re.match(r" +-\d", line)]
    completion = load_run(trained_run).generate(
        "abc", max_tokens=40, sampling=SamplingConfig(temperature=0), logprobs=1
    )
    assert [float(words[0]) for words in found] == [
        pytest.approx(token.logprob, abs=1e-3) for token in completion.logprobs
    ]
    for token, line in zip(completion.tokens, err.splitlines(), strict=False):
        if 97 <= token < 123:  # a letter, which is also the likeliest
            assert re.fullmatch(rf" +(-\d\.\d+)  '{chr(token)}' +'{chr(token)}' \1, .*, .*", line)
    assert re.search(r"^later tokens  p50 .* p95 .* p99 .*; [\d,.]+ tokens/s a row$", err, re.M)
    assert re.search(r"^memory        .* now, .* at most$", err, re.M)
    assert re.search(r"^host memory   .* pressure (low|high|full)$", err, re.M)


def test_stop_strings(trained_run: Path, capsys: Captured):
    flags = ["--prompt=abc", "--max_tokens=40", "--temperature=0"]
    text = run(capsys, trained_run, *flags)[3:-1]
    stop = text[7]
    expected = text[: text.index(stop)]
    assert run(capsys, trained_run, *flags, "--stop=never there", f"--stop={stop}") == (
        f"abc{expected}\n"
    )


def test_filters(trained_run: Path, capsys: Captured):
    """Each leaves the likeliest token alone when it is strict: the greedy text."""
    flags = ["--prompt=abc", "--max_tokens=40"]
    greedy = run(capsys, trained_run, *flags, "--temperature=0")
    for strict in ("--top_k=1", "--top_p=0.00001", "--min_p=1"):
        assert run(capsys, trained_run, *flags, "--temperature=2", strict) == greedy
    assert run(capsys, trained_run, *flags, "--temperature=0", "--repetition_penalty=9") != greedy


def test_a_context_that_is_too_small(trained_run: Path, capsys: Captured):
    """TTT keeps no tokens and has no bound."""
    flags = ["--prompt=abc", "--max_tokens=40", "--temperature=0"]
    assert run(capsys, trained_run, *flags, "--context=8") == run(capsys, trained_run, *flags)


def test_a_terminal_gets_no_control_characters(
    trained_run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch
):
    flags = ["--prompt=a\x1b[31mb", "--temperature=1.5", "--top_p=1", "--max_tokens=200"]
    assert "\x1b" in run(capsys, trained_run, *flags)
    monkeypatch.setattr(sys.stdout, "isatty", lambda: True)
    out = run(capsys, trained_run, *flags)
    assert out.startswith("a[31mb")
    assert not [char for char in out if ord(char) < 32 and char != "\n"]


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--model=nowhere"], ExitCode.DATA, "nowhere isn't there"),
        (["--step=3"], ExitCode.DATA, "complete steps: 2, 4"),
        (["--max_tokens=0"], ExitCode.USAGE, "--max_tokens must be at least 1, got 0"),
        (["--seed=-1"], ExitCode.USAGE, "--seed must be in [0, 2**32), got -1"),
        (["--temperature=-1"], ExitCode.USAGE, "temperature must be"),
        (["--top_p=2"], ExitCode.USAGE, "top_p must be"),
        (["--max_tokens=3000000000"], ExitCode.USAGE, "at most"),
        (["--min_p=2"], ExitCode.USAGE, "min_p must be"),
        (["--repetition_penalty=0"], ExitCode.USAGE, "repetition_penalty must be"),
        (["--stop="], ExitCode.USAGE, "--stop= would end"),
        (["--logprobs=100"], ExitCode.USAGE, "logprobs must be in"),
        (["--context=1"], ExitCode.USAGE, "--context must be at least 2"),
        (["--device=tpu"], ExitCode.USAGE, "there is no such device here"),
        (["--revision=main"], ExitCode.USAGE, "isn't a model on the Hub"),
    ],
)
def test_mistakes(trained_run: Path, capsys: Captured, flags: list[str], code: int, message: str):
    assert main([f"--model={trained_run}", *flags]) == code
    err = capsys.readouterr().err
    assert err.startswith("error: ") and message in err


def test_ctrl_c_ends_the_text(trained_run: Path):
    process = start(f"--model={trained_run}", "--prompt=abc", "--max_tokens=1000000")
    assert process.stdout
    assert process.stdout.read(3) == b"abc"  # the first step is being compiled
    process.send_signal(signal.SIGINT)
    out, err = process.communicate(timeout=60)
    assert process.returncode == ExitCode.INTERRUPTED
    assert out.endswith(b"\n")
    assert re.match(rb"step 4 loaded in .* tokens", err) and b"Traceback" not in err


def test_a_reader_that_goes_away(trained_run: Path):
    process = start(f"--model={trained_run}", "--prompt=abc", "--max_tokens=1000000")
    assert process.stdout and process.stderr
    process.stdout.read(3)
    process.stdout.close()
    assert process.stderr.read() == b""
    assert process.wait(60) == 141
    process.stderr.close()


def test_help_is_quick():
    script = """
import sys
from bitttt_jax.commands import evaluate, generate
for command in (evaluate, generate):
    try:
        command.main(["--help"])
    except SystemExit as stop:
        assert stop.code == 0
assert not {"jax", "numpy", "tokenizers", "pydantic", "orbax"} & set(sys.modules)
"""
    found = subprocess.run(
        [sys.executable, "-c", script],
        capture_output=True,
        text=True,
        env={"PYTHONPATH": ":".join(sys.path)},
        check=False,
    )
    assert found.returncode == 0, found.stderr
    assert "usage: bitttt generate" in found.stdout and "usage: bitttt evaluate" in found.stdout
