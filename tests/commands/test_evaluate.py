from __future__ import annotations

import gzip
import json
import lzma
import math
import shutil
import sys
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.commands.evaluate import main
from bitttt_jax.config import DataConfig, SourceConfig, TokenizerConfig
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import TokenDataset
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ExitCode
from bitttt_jax.inference.compressors import decoded_documents
from bitttt_jax.runs.directory import RunDirectory
from tests.data.chats import make_chats, write_chats

Captured = pytest.CaptureFixture[str]


def result_of(capsys: Captured, model: Path, *flags: str) -> dict[str, Any]:
    """The JSON that the command prints."""
    assert main([f"--model={model}", "--format=json", *flags]) == ExitCode.OK
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture
def copied_run(trained_run: Path, tmp_path: Path) -> Path:
    """A copy that may be changed."""
    return shutil.copytree(trained_run, tmp_path / "run")


@pytest.fixture(scope="session")
def held_out(trained_run: Path) -> list[bytes]:
    """The documents that the run held out."""
    dataset = TokenDataset.open(trained_run / "data", "validation")
    return list(decoded_documents(dataset, Tokenizer.bytes()))


def write_documents(folder: Path, documents: list[bytes]) -> Path:
    folder.mkdir()
    for n, document in enumerate(documents):
        (folder / f"{n:03}.txt").write_bytes(document)
    return folder


def test_the_loss_is_that_of_the_trainings_last_validation(
    trained_run: Path, capsys: Captured, held_out: list[bytes]
):
    result = result_of(capsys, trained_run)
    events, _ = RunDirectory(trained_run).read_events()
    last = [event for event in events if event["kind"] == "eval"][-1]
    assert last["step"] == result["step"] == 4
    # The whole text, not the part that is read during the run.
    assert result["loss"] == pytest.approx(last["final/loss"], rel=1e-6)
    assert result["loss_error"] == pytest.approx(last["final/loss_error"], rel=1e-4)
    assert result["bits_per_byte"] == pytest.approx(last["final/bpb"], rel=1e-6)
    text = b"".join(held_out)
    assert (result["documents"], result["text_bytes"]) == (len(held_out), len(text))
    assert result["tokens"] == len(text) + len(held_out)  # an end for each document
    nats = result["loss"] * result["tokens"]
    assert result["bits_per_byte"] == pytest.approx(nats / math.log(2) / len(text), rel=1e-12)
    assert sum(bucket["tokens"] for bucket in result["by_position"]) == result["tokens"]
    assert [bucket["from"] for bucket in result["by_position"]] == [0, 16]
    gzip_size = len(gzip.compress(text, 9))
    xz_size = len(lzma.compress(text, preset=9 | lzma.PRESET_EXTREME))
    assert result["compressors"] == {
        "gzip -9": {"bytes": gzip_size, "bits_per_byte": 8 * gzip_size / len(text)},
        "xz -9e": {"bytes": xz_size, "bits_per_byte": 8 * xz_size / len(text)},
    }


def test_given_text_counts_whole(
    trained_run: Path, tmp_path: Path, capsys: Captured, held_out: list[bytes]
):
    """The held-out documents, given as files, give the result of the held-out documents."""
    folder = write_documents(tmp_path / "text", held_out)
    before = result_of(capsys, trained_run)
    after = result_of(capsys, trained_run, f"--data={folder}")
    assert after.pop("data") == [str(folder)] and before.pop("data") == []
    assert after == before
    file = f"--data={folder / '000.txt'}"
    twice = result_of(capsys, trained_run, file, file, "--no-compressors", "--step=2")
    assert (twice["documents"], twice["text_bytes"]) == (2, 2 * len(held_out[0]))
    assert twice["step"] == 2 and twice["compressors"] == {}
    assert not list(tmp_path.glob("**/*.bin"))


def test_prepared_tokens_count_with_both_splits(
    trained_run: Path, capsys: Captured, texts: list[str]
):
    result = result_of(capsys, trained_run, f"--data={trained_run / 'data'}")
    assert result["documents"] == len(texts)
    assert result["text_bytes"] == sum(len(text.encode()) for text in texts)


@pytest.mark.parametrize("adds_bos", [True, False])
def test_documents_begin_as_the_tokenizer_wants(
    copied_run: Path, tmp_path: Path, capsys: Captured, held_out: list[bytes], adds_bos: bool
):
    """A model that was taught no bos doesn't get one; the same bytes are compared then, too."""
    Tokenizer(Tokenizer.bytes().text, adds_bos=adds_bos).save(copied_run / "tokenizer.json")
    folder = write_documents(tmp_path / "text", held_out)
    result = result_of(capsys, copied_run, f"--data={folder}")
    text_bytes = sum(map(len, held_out))
    assert result["text_bytes"] == text_bytes
    assert result["tokens"] == text_bytes + (len(held_out) if adds_bos else 0)
    assert set(result["compressors"]) == {"gzip -9", "xz -9e"}


def test_replies_of_conversations(
    copied_run: Path, tmp_path: Path, capsys: Captured, held_out: list[bytes]
):
    template = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}"
    (copied_run / "chat_template.jinja").write_text(template)
    chats = make_chats(9)
    path = write_chats(tmp_path / "chats.jsonl", chats)
    result = result_of(capsys, copied_run, f"--data={path}")
    replies = [m["content"] for messages in chats for m in messages if m["role"] == "assistant"]
    assert result["documents"] == 9
    assert result["tokens"] == result["text_bytes"] == len("".join(replies).encode())
    assert "only replies count" in result["compressors_left_out"]
    (copied_run / "chat_template.jinja").unlink()
    assert main([f"--model={copied_run}", f"--data={path}"]) == ExitCode.DATA
    assert "no special tokens for conversations" in capsys.readouterr().err


def test_rows_of_another_length(trained_run: Path, capsys: Captured):
    result = result_of(capsys, trained_run, "--seq_len=1024", "--batch_size=1", "--no-compressors")
    assert result["seq_len"] == 1024
    starts = [bucket["from"] for bucket in result["by_position"]]
    assert starts == [0, 16, 32, 64, 128, 256][: len(starts)] and len(starts) > 3


def test_table(trained_run: Path, capsys: Captured):
    assert main([f"--model={trained_run}"]) == ExitCode.OK
    out, err = capsys.readouterr()
    result = result_of(capsys, trained_run)
    for line in (
        f"model       {trained_run}, step 4\n",
        f"text        held-out documents: {result['documents']} documents, ",
        f"loss       {result['loss']:10.4f}{result['loss_error']:12.4f}  nats a token\n",
        f"bits/byte  {result['bits_per_byte']:10.4f}{result['bits_per_byte_error']:12.4f}\n",
        f"  gzip -9  {result['compressors']['gzip -9']['bits_per_byte']:10.4f}\n",
        "  xz -9e   ",
    ):
        assert line in out
    assert out.endswith(f"{result['by_position'][-1]['tokens']:,}\n")
    assert "evaluate: 100 %\n" in err and "\x1b" not in err


def test_bar_on_a_terminal(trained_run: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(sys.stderr, "isatty", lambda: True)
    assert main([f"--model={trained_run}", "--format=json", "--no_compressors"]) == ExitCode.OK
    out, err = capsys.readouterr()
    assert "evaluate" in err and "100%" in err
    json.loads(out)


def test_one_row_has_no_standard_error(trained_run: Path, tmp_path: Path, capsys: Captured):
    file = tmp_path / "short.txt"
    file.write_text("short")
    assert main([f"--model={trained_run}", f"--data={file}"]) == ExitCode.OK
    assert "           -  nats a token\n" in capsys.readouterr().out
    result = result_of(capsys, trained_run, f"--data={file}")
    assert result["loss_error"] is None and "loss_error" in result["nonfinite"]


def test_compressors_need_the_exact_text(copied_run: Path, capsys: Captured):
    """A tokenizer that replaces characters gives other bytes back than those it was given."""
    path = copied_run / "tokenizer.json"
    content = json.loads(path.read_text())
    content["normalizer"] = {"type": "Replace", "pattern": {"String": "ï"}, "content": "i"}
    path.write_text(json.dumps(content))
    shutil.rmtree(copied_run / "data")
    folder = write_documents(copied_run.parent / "text", [f"{n} naïve".encode() for n in range(9)])
    tokenizer = TokenizerConfig(kind="file", path=str(path))
    source = SourceConfig(path=str(folder))
    prepare(DataConfig((source,), tokenizer, validation_fraction=0.5), copied_run / "data")
    result = result_of(capsys, copied_run)
    count = result["documents"]
    assert result["compressors"] == {} and result["text_bytes"] == 8 * count
    why = f"{8 * count} bytes came back from the tokens as {7 * count}"
    assert why in result["compressors_left_out"]
    assert main([f"--model={copied_run}"]) == ExitCode.OK
    assert "(without gzip and xz: the tokenizer loses text" in capsys.readouterr().out


def test_text_of_another_tokenizer(trained_run: Path, tmp_path: Path, capsys: Captured):
    folder = write_documents(tmp_path / "text", [b"text " * 20])
    tokenizer = TokenizerConfig(kind="bpe", vocab_size=260)
    source = SourceConfig(path=str(folder))
    prepare(DataConfig((source,), tokenizer, validation_fraction=0), tmp_path / "tokens")
    flags = [f"--model={trained_run}", f"--data={tmp_path / 'tokens'}"]
    assert main(flags) == ExitCode.DATA
    err = capsys.readouterr().err
    assert "was prepared with another tokenizer than the model's" in err
    assert f"bitttt prepare --tokenizer={trained_run / 'tokenizer.json'}" in err


def test_runs_without_held_out_documents(copied_run: Path, capsys: Captured):
    flags = [f"--model={copied_run}", "--no_compressors"]
    shutil.rmtree(copied_run / "data")
    assert main(flags) == ExitCode.DATA
    err = capsys.readouterr().err
    assert "the run's held-out documents are missing" in err and "Try: --data=PATH" in err
    source = SourceConfig(path=str(write_documents(copied_run.parent / "text", [b"text"])))
    prepare(DataConfig((source,), validation_fraction=0), copied_run / "data")
    assert main(flags) == ExitCode.DATA
    assert "holds no held-out documents" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "code", "message"),
    [
        (["--seq_len=30"], ExitCode.USAGE, "--seq_len=30 must be a multiple of 8"),
        (["--seq_len=-8"], ExitCode.USAGE, "--seq_len must not be negative, got -8"),
        (["--batch_size=-1"], ExitCode.USAGE, "--batch_size must not be negative, got -1"),
        (["--data="], ExitCode.USAGE, "--data= names no file"),
        (["--data=/nowhere.txt"], ExitCode.DATA, "Try: another --data"),
        ([f"--data={sys.executable}"], ExitCode.DATA, "which can leave documents out"),
        (["--step=1"], ExitCode.DATA, "complete steps: 2, 4"),
        (["--model=/nowhere"], ExitCode.DATA, "/nowhere isn't there"),
    ],
)
def test_mistakes(trained_run: Path, capsys: Captured, flags: list[str], code: int, message: str):
    assert main([f"--model={trained_run}", *flags]) == code
    out, err = capsys.readouterr()
    assert out == "" and "error: " in err and message in err
