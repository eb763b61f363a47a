from __future__ import annotations

import json
import re
import shutil
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
import tokenizers

import bitttt_jax
from bitttt_jax.commands import bench, convert, evaluate, generate
from bitttt_jax.config import ModelConfig
from bitttt_jax.data import safetensors
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ExitCode
from bitttt_jax.inference import packed_model
from bitttt_jax.interop import huggingface_export
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.models import parameters
from bitttt_jax.models.transformer import init_params

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


@pytest.mark.parametrize(
    ("table", "codes", "dtype"),
    [
        ("int8", "codes", np.int8),
        ("int4", "codes", np.uint8),
        ("int4x2", "fine", np.uint8),
    ],
)
def test_quantised_tables(table, codes, dtype, trained_run: Path, tmp_path: Path, capsys: Captured):
    assert convert.main([str(trained_run), str(tmp_path / "m"), f"--table={table}"]) == ExitCode.OK
    tensors, _ = safetensors.read(tmp_path / "m" / packed_model.WEIGHTS_FILE)
    assert tensors[f"embed/embedding/{codes}"].dtype == dtype
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


def attention_model(**settings: Any) -> ForeignModel:
    config = ModelConfig(
        vocab_size=257, dim=128, num_layers=1, num_heads=2, mlp_dim=256, **settings
    )
    params = parameters.unstack(jax.jit(init_params, static_argnums=0)(config, jax.random.key(0)))
    return ForeignModel(config, params, Tokenizer.bytes(), "random", 64, "{{ messages }}")


@pytest.fixture(scope="module")
def ternary_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A Hugging Face folder of packed weights."""
    folder = tmp_path_factory.mktemp("models") / "ternary"
    huggingface_export.export(folder, attention_model(), "hf-packed")
    return folder


@pytest.mark.parametrize("to", ["packed", "hf", "hf-packed", "gguf-f16", "gguf-i2_s"])
def test_models_of_other_programs_go_on_to_every_format(
    ternary_folder: Path, tmp_path: Path, capsys: Captured, to: str
):
    before = bitttt_jax.load(ternary_folder)
    path = tmp_path / ("model.gguf" if to.startswith("gguf") else "model")
    assert convert.main([str(ternary_folder), str(path), f"--to={to}"]) == ExitCode.OK
    out = capsys.readouterr().out
    assert to == "packed" or "read back" in out
    assert "bytes" in out and str(path) in out
    after = bitttt_jax.load(path)
    assert (after.context, after.chat_template) == (64, "{{ messages }}")
    assert after.tokenizer.encode("déf").tolist() == before.tokenizer.encode("déf").tolist()
    assert after.tokenizer.adds_bos == before.tokenizer.adds_bos
    tokens = np.arange(40)
    expected = before.logits(tokens)
    # gguf-f16 and hf have masters, of which the scale is found again in rounded numbers.
    np.testing.assert_allclose(after.logits(tokens), expected, atol=0.05 * np.abs(expected).max())


def test_runs_as_hugging_face_folders(trained_run: Path, tmp_path: Path, capsys: Captured):
    assert convert.main([str(trained_run), str(tmp_path / "hf"), "--to=hf"]) == ExitCode.OK
    assert "read back" in capsys.readouterr().out
    run, folder = bitttt_jax.load(trained_run), bitttt_jax.load(tmp_path / "hf")
    assert folder.tokenizer.adds_bos and folder.tokenizer.bos_id == run.tokenizer.bos_id
    # As other programs read it.
    backend = tokenizers.Tokenizer.from_file(str(tmp_path / "hf" / "tokenizer.json"))
    assert backend.encode("def").ids[0] == run.tokenizer.bos_id
    tokens = np.arange(32)
    expected = run.logits(tokens)
    np.testing.assert_allclose(folder.logits(tokens), expected, atol=0.05 * np.abs(expected).max())


@pytest.mark.parametrize(
    ("flags", "message"),
    [
        (["--to=gguf-tq2_0", "--table=int8"], "--table=int8 isn't known with --to=gguf-tq2_0"),
        (["--to=hf", "--layout=base3"], "--layout=base3 isn't known"),
        (["--to=gguf-tq2_0"], "block 0 is ttt"),
        (["--to=hf-packed"], "layer 0 is ttt"),
    ],
)
def test_what_a_format_cannot_hold(
    trained_run: Path, tmp_path: Path, capsys: Captured, flags: list[str], message: str
):
    assert convert.main([str(trained_run), str(tmp_path / "m"), *flags]) == ExitCode.USAGE
    assert message in capsys.readouterr().err
    assert not (tmp_path / "m").exists()
