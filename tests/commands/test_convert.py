from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bitttt_jax.commands import bench, convert, evaluate, generate
from bitttt_jax.data import safetensors
from bitttt_jax.errors import ExitCode
from bitttt_jax.inference import packed_model

Captured = pytest.CaptureFixture[str]


@pytest.fixture(scope="session")
def packed_folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    assert convert.main([str(trained_run), str(folder)]) == ExitCode.OK
    return folder


@pytest.fixture
def folder(packed_folder: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(packed_folder, tmp_path / "copy")


def text(capsys: Captured, model: Path) -> str:
    flags = ["--prompt=def ", "--temperature=0", "--max_tokens=40"]
    assert generate.main([f"--model={model}", *flags]) == ExitCode.OK
    return capsys.readouterr().out


@pytest.mark.parametrize("layout", ["i2_s", "rows4", "base3"])
def test_the_packed_model_writes_the_same_text(
    trained_run: Path, tmp_path: Path, capsys: Captured, layout: str
):
    folder = tmp_path / "deeper" / "model"
    assert convert.main([str(trained_run), str(folder), f"--layout={layout}"]) == ExitCode.OK
    out = capsys.readouterr().out
    weights = folder / packed_model.WEIGHTS_FILE
    sizes = [
        int(line.split(" bytes")[0].split()[-1].replace(",", "")) for line in out.splitlines()[:4]
    ]
    tensors, _ = safetensors.read(weights)
    assert sum(sizes[:3]) == sizes[3] == sum(tensor.nbytes for tensor in tensors.values())
    assert text(capsys, folder) == text(capsys, trained_run)
    assert layout in (folder / packed_model.CARD_FILE).read_text()


@pytest.mark.parametrize(("table", "dtype"), [("int8", np.int8), ("int4", np.uint8)])
def test_quantised_tables(table, dtype, trained_run: Path, tmp_path: Path, capsys: Captured):
    assert convert.main([str(trained_run), str(tmp_path / "m"), f"--table={table}"]) == ExitCode.OK
    tensors, _ = safetensors.read(tmp_path / "m" / packed_model.WEIGHTS_FILE)
    assert tensors["embed/embedding/codes"].dtype == dtype
    out = capsys.readouterr().out
    before, after = map(
        float, re.search(r"held-out loss +(\S+) before, (\S+) packed", out).groups()
    )
    assert before > 1 and abs(after - before) < 0.05
    assert text(capsys, tmp_path / "m").startswith("def ")


def test_evaluation_of_a_packed_model(
    trained_run: Path, packed_folder: Path, tmp_path: Path, capsys: Captured
):
    (tmp_path / "text.txt").write_text("def f(x):\n    return x\n" * 20)
    losses = []
    for model in (trained_run, packed_folder):
        flags = [f"--model={model}", f"--data={tmp_path / 'text.txt'}", "--format=json"]
        assert evaluate.main([*flags, "--no_compressors"]) == ExitCode.OK
        losses.append(json.loads(capsys.readouterr().out)["loss"])
    assert losses[0] == pytest.approx(losses[1], rel=1e-5)


def test_bench_of_a_packed_model(packed_folder: Path, tmp_path: Path, capsys: Captured):
    flags = ["--prefill=4", "--decode=2", "--batch=1,2", "--context=8", "--kernels"]
    file = tmp_path / "bench.json"
    assert bench.main([f"--model={packed_folder}", *flags, f"--json={file}"]) == ExitCode.OK
    assert "tokens/s" in capsys.readouterr().out
    result = json.loads(file.read_text())
    assert {(k["inputs"], k["outputs"]) for k in result["kernels"]} == {
        (16, 16),
        (16, 32),
        (32, 16),
    }
    load = result["load"]
    weights = packed_folder / packed_model.WEIGHTS_FILE
    assert load["file_bytes"] == weights.stat().st_size
    assert load["seconds"] > 0
    assert load["peak_resident_bytes"] >= load["resident_bytes"]
    runs = result["runs"]
    assert [(r["what"], r["batch"]) for r in runs] == [
        ("prefill", 1), ("decode", 1), ("decode", 1), ("prefill", 2), ("decode", 2)
    ]  # fmt: skip
    assert all(r["lower"] <= r["median"] <= r["upper"] for r in runs)
    flags = ["--prefill=2", "--decode=2", f"--json={tmp_path / 'no' / 'bench.json'}"]
    assert bench.main([f"--model={packed_folder}", *flags]) == ExitCode.DATA
    assert "can't be written" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--config=bitnet_2b4t", "--model=x"], "not both"),
        ([], "not both"),
        (["--config=quickstart"], "no vocabulary size"),
        (["--model=x", "--vocab_size=9"], "goes with --config"),
        (["--model=x", "--batch=0"], "--batch must be positive"),
        (["--model=x", "--threads=4096"], "--threads=4096"),
        (["--model=x", "--decode=1"], "--decode must be at least 2"),
    ],
)
def test_mistakes_with_bench(flags: list[str], message: str, capsys: Captured):
    assert bench.main(flags) == ExitCode.USAGE
    assert message in capsys.readouterr().err


def test_a_folder_that_is_there_is_left_alone(trained_run: Path, tmp_path: Path, capsys: Captured):
    assert convert.main([str(trained_run), str(tmp_path)]) == ExitCode.USAGE
    assert "is there already" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())


def damage(capsys: Captured, folder: Path) -> str:
    assert generate.main([f"--model={folder}", "--prompt=x"]) == ExitCode.DATA
    return capsys.readouterr().err


def resave(folder: Path, change) -> None:
    """Changes the tensors, with a manifest that fits."""
    weights = folder / packed_model.WEIGHTS_FILE
    tensors = {name: np.array(tensor) for name, tensor in safetensors.read(weights)[0].items()}
    change(tensors)
    safetensors.write(weights, tensors, {})
    manifest = json.loads((folder / packed_model.MANIFEST_FILE).read_text())
    manifest["sha256"][packed_model.WEIGHTS_FILE] = packed_model.digest(weights)
    (folder / packed_model.MANIFEST_FILE).write_text(json.dumps(manifest))


CODES = "group_0/block_0/mlp/down/kernel/codes"


def test_a_changed_file_is_refused(folder: Path, capsys: Captured):
    weights = folder / packed_model.WEIGHTS_FILE
    data = bytearray(weights.read_bytes())
    data[-1] ^= 1
    weights.write_bytes(data)
    assert "SHA-256" in damage(capsys, folder)


def test_weights_are_hashed_from_their_first_byte(folder: Path, capsys: Captured):
    """The bytes before the tensors, where the file's metadata is, count too."""
    weights = folder / packed_model.WEIGHTS_FILE
    data = weights.read_bytes()
    assert data.count(b"bitttt-packed") == 1
    weights.write_bytes(data.replace(b"bitttt-packed", b"bitttt-pocked"))
    assert "SHA-256" in damage(capsys, folder)


def test_a_manifest_without_a_hash_is_refused(folder: Path, capsys: Captured):
    manifest = json.loads((folder / packed_model.MANIFEST_FILE).read_text())
    del manifest["sha256"][packed_model.WEIGHTS_FILE]
    (folder / packed_model.MANIFEST_FILE).write_text(json.dumps(manifest))
    assert "SHA-256" in damage(capsys, folder)


def test_a_place_that_cannot_be_written(trained_run: Path, tmp_path: Path, capsys: Captured):
    (tmp_path / "file").write_text("")
    assert convert.main([str(trained_run), str(tmp_path / "file" / "model")]) == ExitCode.DATA
    assert "can't be written" in capsys.readouterr().err


def test_a_code_that_is_no_weight_is_refused(folder: Path, capsys: Captured):
    resave(folder, lambda tensors: tensors[CODES].__setitem__((0, 0), 0b01_11_01_01))
    assert "down/kernel that is no ternary weight" in damage(capsys, folder)


def test_a_wrong_size_is_refused(folder: Path, capsys: Captured):
    resave(folder, lambda tensors: tensors.update({CODES: tensors[CODES][:-1]}))
    assert f"{CODES} is uint8[15, 32], not uint8[16, 32]" in damage(capsys, folder)


def test_a_missing_scale_is_refused(folder: Path, capsys: Captured):
    resave(folder, lambda tensors: tensors.pop(CODES.replace("codes", "scale")))
    assert "down/kernel/scale is missing" in damage(capsys, folder)


def test_a_newer_format_is_refused(folder: Path, capsys: Captured):
    manifest = folder / packed_model.MANIFEST_FILE
    manifest.write_text(manifest.read_text().replace('"format_version": 1', '"format_version": 2'))
    assert "format version 2, this program reads 1" in damage(capsys, folder)


def test_a_missing_file_is_named(folder: Path, capsys: Captured):
    (folder / "tokenizer.json").unlink()
    assert "tokenizer.json can't be read" in damage(capsys, folder)


def test_another_step_than_the_packed_one(packed_folder: Path, capsys: Captured):
    assert generate.main([f"--model={packed_folder}", "--step=2"]) == ExitCode.USAGE
    assert "of step 4" in capsys.readouterr().err


def test_the_weights_are_in_memory_once(packed_folder: Path, monkeypatch: pytest.MonkeyPatch):
    buffers = []
    read = safetensors.large_buffer
    monkeypatch.setattr(
        safetensors, "large_buffer", lambda size: buffers.append(read(size)) or buffers[-1]
    )
    _, params, _, _ = packed_model.load(packed_folder)
    (buffer,) = buffers
    start = buffer.ctypes.data
    pointers = [
        leaf.unsafe_buffer_pointer() - start
        for leaf in jax.tree.leaves(params["group_0"])
        if leaf.dtype == np.uint8
    ]
    assert pointers and all(0 <= pointer < len(buffer) for pointer in pointers)
