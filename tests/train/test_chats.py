"""A model is taught a few questions and answers, and then asked."""

from __future__ import annotations

import io
import json
from pathlib import Path

import numpy as np
import pytest

import bitttt_jax
from bitttt_jax import train
from bitttt_jax.commands import chat, convert
from bitttt_jax.data.chat_templates import ROLES, ChatTemplate
from bitttt_jax.errors import ExitCode
from tests.train.runs import rows

ANSWERS = {
    "Capital of France?": "Paris.",
    "Capital of Japan?": "東京 (Tokyo).",
    "Two plus two?": "Four.",
    "Who are you?": "A small model.",
}
Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="module")
def taught(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run that has learned the answers by heart."""
    folder = tmp_path_factory.mktemp("chats")
    pairs = [{"instruction": question, "output": reply} for question, reply in ANSWERS.items()]
    (folder / "chats.json").write_text(json.dumps(pairs), encoding="utf-8")
    overrides = {
        "steps": 160,
        "data.sources": folder / "chats.json",
        "data.validation_fraction": 0,
        "data.seq_len": 128,
        "data.batch_size": 8,
        "optim.lr": 1e-2,
        "log.tensorboard": False,
        "log.health_every_steps": 0,
        "checkpoint.every_steps": 0,
        "eval.sample_prompt": "",
    }
    flags = [f"--config.{key}={value}" for key, value in overrides.items()]
    run = folder / "run"
    assert train.main(["--config=debug", f"--workdir={run}", *flags]) == ExitCode.OK
    return run


def ask(
    monkeypatch: pytest.MonkeyPatch, capsys: Captured, model: Path, *questions: str
) -> list[str]:
    """The model's replies, in a chat for each question."""
    replies = []
    for question in questions:
        monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(question.encode())))
        flags = [f"--model={model}", "--temperature=0", "--max_tokens=40"]
        assert chat.main(flags) == ExitCode.OK
        replies.append(capsys.readouterr().out.rstrip("\n"))
    return replies


@pytest.mark.slow
def test_it_answers(taught: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured) -> None:
    assert ask(monkeypatch, capsys, taught, *ANSWERS) == list(ANSWERS.values())


@pytest.mark.slow
def test_the_template_goes_with_the_model(
    taught: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Captured
) -> None:
    assert (taught / "chat_template.jinja").read_text() == ROLES
    assert bitttt_jax.load(taught).chat_template == ROLES
    assert convert.main([str(taught), str(tmp_path / "packed")]) == ExitCode.OK
    assert convert.main([str(taught), str(tmp_path / "hf"), "--to=hf"]) == ExitCode.OK
    capsys.readouterr()
    for name in ("packed", "hf"):
        assert bitttt_jax.load(tmp_path / name).chat_template == ROLES
        question, reply = next(iter(ANSWERS.items()))
        assert ask(monkeypatch, capsys, tmp_path / name, question) == [reply]


@pytest.mark.slow
def test_only_replies_were_learned(taught: Path) -> None:
    assert list(rows(taught, "train/loss").values())[-1] < 0.05
    model, template = bitttt_jax.load(taught), ChatTemplate(ROLES)
    losses: dict[bool, list[float]] = {True: [], False: []}
    for question, reply in ANSWERS.items():
        messages = [{"role": "user", "content": question}, {"role": "assistant", "content": reply}]
        ids, learned_T = template.encode_learned(model.tokenizer, messages)
        logits_TV = model.logits(ids).astype(np.float64)
        logits_TV -= np.log(np.exp(logits_TV).sum(-1, keepdims=True))
        for place, is_learned in enumerate(learned_T[1:]):
            losses[bool(is_learned)].append(-logits_TV[place, ids[place + 1]])
    assert np.mean(losses[True]) < 0.05 and np.mean(losses[False]) > 1
