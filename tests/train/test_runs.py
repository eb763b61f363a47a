"""Whole runs: what they write, how they end, and how they go on."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax import train
from bitttt_jax.config import TrainConfig
from bitttt_jax.errors import ExitCode
from bitttt_jax.models.counts import count
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.training import hardware
from tests.train.runs import (
    arguments,
    assert_same_state,
    copy_run,
    events,
    rows,
    state_of,
)


def test_what_a_run_writes(finished: Path, config: TrainConfig):
    run = RunDirectory(finished)
    assert run.read_config() == finished.with_suffix(".json").read_text()
    status = run.read_status()
    assert status is not None and status.finished
    assert (status.state, status.step, status.steps, status.exit_code) == ("finished", 12, 12, 0)
    for tag in ("train/loss", "train/bpb", "lr", "grad_norm", "perf/step_s", "mem/host_peak_gib"):
        assert list(rows(finished, tag)) == [2, 4, 6, 8, 10, 12]
    assert list(rows(finished, "eval/loss")) == [4, 8, 12]
    assert list(rows(finished, "final/loss")) == [12]
    assert list(rows(finished, "quant/zero_share")) == [6, 12]
    assert list(rows(finished, "quant/flip_share")) == [12]
    losses = list(rows(finished, "train/loss").values())
    assert losses[0] > 5 and losses[-1] < losses[0]
    tokens = config.data.batch_size * config.data.seq_len
    assert rows(finished, "train/tokens") == {step: step * tokens for step in range(2, 13, 2)}
    assert [event["step"] for event in events(finished, "checkpoint")] == [4, 8, 12]
    assert [event["step"] for event in events(finished, "eval")] == [4, 8, 12, 12]
    assert [event["function"] for event in events(finished, "compile")] == [
        "train_step", "eval_step",
    ]  # fmt: skip
    assert not (finished / "error.json").exists()
    assert "bitttt_jax.train" in (finished / "command.txt").read_text()


def test_bits_per_byte_and_the_final_validation(finished: Path):
    from bitttt_jax.data.shards import TokenDataset

    train_split, held_out = (
        TokenDataset.open(finished / "data", split) for split in ("train", "validation")
    )
    for tag, split in (("train", train_split), ("eval", held_out), ("final", held_out)):
        ratio = split.tokens / split.text_bytes / np.log(2)
        for step, loss in rows(finished, f"{tag}/loss").items():
            assert rows(finished, f"{tag}/bpb")[step] == pytest.approx(loss * ratio, rel=1e-6)
            assert rows(finished, f"{tag}/ppl")[step] == pytest.approx(np.exp(loss), rel=1e-6)
    out = (finished.parent / "out.txt").read_text()
    assert f"all {held_out.tokens:,} held-out tokens" in out
    part, whole = rows(finished, "eval/loss")[12], rows(finished, "final/loss")[12]
    assert part != whole and abs(part - whole) < 0.3


def test_what_a_run_prints(finished: Path):
    out = (finished.parent / "out.txt").read_text()
    labels = [line.split()[0] for line in out.splitlines() if line[:1].strip()]
    order = ["run", "version", "data", "model", "optim", "mesh", "compile", "memory", "log", "eval"]
    positions = [labels.index(label) for label in order]
    assert positions == sorted(positions)
    assert f"NEW RUN {finished}" in out and "8 x cpu" in out and "\r" not in out
    assert out.count("n/a (cpu backend keeps no device statistics)") == 1
    assert re.search(r"^step=12/12 loss=\d.* eta=0s$", out, re.MULTILINE)
    assert out.count("\nckpt ") == 4  # three checkpoints, and their list in the summary
    assert re.search(r"^status +finished, step 12/12$", out, re.MULTILINE)
    assert (finished / "train.log").read_text() == out


def test_histograms_go_to_tensorboard(finished: Path):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(finished / "tb"))
    events.Reload()
    assert [event.step for event in events.Scalars("eval/loss")] == [4, 8, 12]
    assert [event.step for event in events.Tensors("quant/latent")] == [6, 12]


def test_a_finished_run_is_not_touched(
    finished: Path,
    tmp_path: Path,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    before = (folder / "metrics.jsonl").read_bytes()
    assert start() == ExitCode.OK
    assert "nothing to do" in (out := capsys.readouterr().out) and "step 12/12" in out
    assert "compile" not in out
    assert (folder / "metrics.jsonl").read_bytes() == before
    status = RunDirectory(folder).read_status()
    assert status is not None and status.finished and status.exit_code == 0


def test_more_steps_go_on_where_the_run_ended(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    assert start(config=dataclasses.replace(config, steps=16)) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"RESUMING {folder} from step 12" in out
    assert list(rows(folder, "train/loss")) == [2, 4, 6, 8, 10, 12, 14, 16]
    assert list(rows(folder, "eval/loss")) == [4, 8, 12, 16]
    assert [event["step"] for event in events(folder, "resume")] == [12]
    straight = tmp_path / "straight"
    code = train.main(arguments(straight, dataclasses.replace(config, steps=16)))
    assert code == ExitCode.OK
    assert_same_state(state_of(folder, config, 16), state_of(straight, config, 16))
    for tag in ("train/loss", "eval/loss"):
        assert rows(folder, tag) == rows(straight, tag)


def test_the_best_loss_outlives_a_restart(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    """The run goes on with a rate that ruins it."""
    copy_run(finished, tmp_path)
    ruinous = dataclasses.replace(config.optim, lr=30.0)
    assert start(config=dataclasses.replace(config, steps=13, optim=ruinous)) == ExitCode.OK
    summary = capsys.readouterr().out.partition("Training summary")[2]
    best = min(rows(finished, "eval/loss").values())
    assert re.search(rf"^best +loss {best:.3f} .*\(step 12\)$", summary, re.MULTILINE)
    assert re.search(r"^final +loss .*\(step 13\)$", summary, re.MULTILINE)


def test_another_configuration_is_refused_moved_or_forced(
    finished: Path,
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    folder = copy_run(finished, tmp_path)
    other = dataclasses.replace(config, seed=7, steps=14)
    before = {path: path.stat().st_mtime_ns for path in folder.rglob("*")}
    assert start(config=other) == ExitCode.USAGE
    assert re.search(r"seed +0 +7", capsys.readouterr().err)
    assert {path: path.stat().st_mtime_ns for path in folder.rglob("*")} == before
    assert start("--resume=force", config=other) == ExitCode.OK
    assert "from step 12" in capsys.readouterr().out
    assert start("--resume=never") == ExitCode.OK
    assert "NEW RUN" in capsys.readouterr().out
    assert list(rows(folder, "train/loss")) == [2, 4, 6, 8, 10, 12]
    assert list(rows(folder / "old-1", "train/loss"))[-1] == 14


def test_a_time_limit_saves_and_stops(
    tmp_path: Path, config: TrainConfig, finished: Path, start: Callable[..., int]
):
    limited = dataclasses.replace(config, max_minutes=1e-6)
    assert start(config=limited) == ExitCode.PREEMPTED
    folder = tmp_path / "run"
    status = RunDirectory(folder).read_status()
    assert status is not None and (status.state, status.exit_code) == ("stopped", 42)
    assert RunDirectory(folder).checkpoint_steps() == [status.step] == [1]
    assert [(e["step"], e["exit_code"]) for e in events(folder, "stop")] == [(1, 42)]
    assert start() == ExitCode.OK
    assert_same_state(state_of(folder, config, 12), state_of(finished, config, 12))


def test_without_held_out_documents(
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    """A single document can't be split."""
    (tmp_path / "one.txt").write_text("the cat reads " * 200)
    source = dataclasses.replace(config.data.sources[0], path=str(tmp_path / "one.txt"))
    data = dataclasses.replace(config.data, sources=(source,), validation_fraction=0.05)
    assert start(config=dataclasses.replace(config, data=data)) == ExitCode.OK
    out = capsys.readouterr().out
    assert len(re.findall(r"^warning .*without validation$", out, re.MULTILINE)) == 1
    assert not rows(tmp_path / "run", "eval/loss") and not rows(tmp_path / "run", "final/loss")
    assert RunDirectory(tmp_path / "run").checkpoint_steps() == [8, 12]
    assert len(events(tmp_path / "run", "warn")) == 1


def test_a_run_that_diverges_keeps_its_checkpoint(
    tmp_path: Path,
    config: TrainConfig,
    start: Callable[..., int],
    capsys: pytest.CaptureFixture[str],
):
    assert start(config=dataclasses.replace(config, steps=4)) == ExitCode.OK
    optim = dataclasses.replace(config.optim, lr=1e35, max_skipped=3)
    ruined = dataclasses.replace(config, steps=50, optim=optim)
    assert start(config=ruined) == ExitCode.DIVERGED
    folder = tmp_path / "run"
    error = json.loads((folder / "error.json").read_text())
    assert (error["kind"], error["exit_code"], error["traceback"]) == ("diverged", 4, None)
    assert "3 updates in a row" in error["title"] and "at step 8" in error["title"]
    assert "a lower optim.lr" in error["hints"]
    assert "Traceback" not in capsys.readouterr().err
    status = RunDirectory(folder).read_status()
    assert status is not None and (status.state, status.error_kind) == ("failed", "diverged")
    last = RunDirectory(folder).read_metrics()[0][-1]
    assert last["step"] == 8 and last["train/skipped"] == 3


def test_dry_run(tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]):
    folder = tmp_path / "run"
    before = arguments(folder, config, "--dry_run")
    there = set(tmp_path.rglob("*"))
    assert train.main(before) == ExitCode.OK
    assert set(tmp_path.rglob("*")) == there
    out = capsys.readouterr().out
    assert "vocabulary 320" in out and "data=8 fsdp=1 tensor=1" in out
    assert re.search(r"^memory +[\d.]+ [KM]iB a device", out, re.MULTILINE)
    assert re.search(r"^limit +[\d.]+ \w+ of [\d.]+ GiB a device .* fits$", out, re.MULTILINE)
    assert re.search(r"^time +[\d.]+ m?s a step, measured: .*; 12 steps take ", out, re.MULTILINE)
    assert "loss" not in out


def test_dry_run_as_json(tmp_path: Path, config: TrainConfig, capsys: pytest.CaptureFixture[str]):
    before = [*arguments(tmp_path / "run", config, "--dry_run"), "--console=json"]
    assert train.main(before) == ExitCode.OK
    (line,) = capsys.readouterr().out.splitlines()
    found = json.loads(line)
    assert found["kind"] == "estimate" and found["fits"] and found["failure"] is None
    model = dataclasses.replace(config.model, vocab_size=320)
    counts = count(model, config.data.seq_len)
    assert found["parameters"] == {
        "ternary": counts.ternary, "float": counts.full, "fast": counts.fast,
    }  # fmt: skip
    assert found["packed_bytes"] == counts.packed_bytes
    # Parameters and two moments, on each of the devices.
    assert 12 * counts.total < found["device_bytes"] < found["device_free_bytes"]
    assert found["total_s"] == pytest.approx(config.steps * found["step_s"])
    tokens = config.data.batch_size * config.data.seq_len
    assert found["tokens_per_s"] == pytest.approx(tokens / found["step_s"])
    assert found["compile_s"] > 0


@pytest.mark.parametrize("console", ["plain", "json"])
def test_dry_run_of_what_does_not_fit(
    tmp_path: Path,
    config: TrainConfig,
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    console: str,
):
    monkeypatch.setattr(hardware, "device_room", lambda: (2**20, 2**10))
    before = [*arguments(tmp_path / "run", config, "--dry_run"), f"--console={console}"]
    assert train.main(before) == ExitCode.OUT_OF_MEMORY
    out, err = capsys.readouterr()
    assert "the device has 1 KiB of 1 MiB free" in err and "optim.accumulation" in err
    assert "measured" not in out
    if console == "json":
        found = json.loads(out)
        assert (found["fits"], found["step_s"], found["device_limit_bytes"]) == (False, None, 2**20)
        assert (found["failure"]["kind"], found["failure"]["exit_code"]) == ("out_of_memory", 3)
        assert len(found["failure"]["hints"]) == 3
        assert found["parameters"]["ternary"] > 0


def test_samples_are_told_as_events(tmp_path: Path, config: TrainConfig, start: Callable[..., int]):
    sampling = dataclasses.replace(config.eval, sample_prompt="def ", sample_tokens=5)
    assert start(config=dataclasses.replace(config, steps=8, eval=sampling)) == ExitCode.OK
    told = events(tmp_path / "run", "sample")
    assert [event["step"] for event in told] == [4, 8]
    assert all(event["text"].startswith("def ") for event in told)
