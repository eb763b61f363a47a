from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
import pytest
from gguf import GGMLQuantizationType, GGUFWriter
from safetensors.numpy import save_file

from bitttt_jax.commands import convert
from bitttt_jax.commands.inspect import main
from bitttt_jax.errors import ExitCode
from bitttt_jax.inference.load import load
from bitttt_jax.models import packed, parameters

Captured = pytest.CaptureFixture[str]


def described(capsys: Captured, model: Path, *flags: str) -> dict[str, Any]:
    assert main([str(model), "--format=json", *flags]) == ExitCode.OK
    result: dict[str, Any] = json.loads(capsys.readouterr().out)
    return result


@pytest.fixture(scope="module")
def packed_folder(trained_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("packed") / "model"
    assert convert.main([str(trained_run), str(folder), "--table=int8"]) == ExitCode.OK
    return folder


def test_a_run(trained_run: Path, capsys: Captured):
    result = described(capsys, trained_run)
    leaves = parameters.flatten(load(trained_run).params)
    assert {t["name"]: tuple(t["shape"]) for t in result["tensors"]} == {
        name: leaf.shape for name, leaf in leaves.items()
    }
    assert result["parameters"] == sum(leaf.size for leaf in leaves.values())
    assert result["bytes"] == 4 * result["parameters"]
    ternary = sum(leaf.size for name, leaf in leaves.items() if name.endswith("/gate/kernel"))
    assert result["ternary_parameters"] > ternary > 0
    assert result["metadata"] == {"checkpoints": [2, 4]}
    assert result["config"]["dim"] == 16 and result["tokenizer"]["vocabulary"] == 257


def test_a_packed_folder(packed_folder: Path, trained_run: Path, capsys: Captured):
    result, of_run = described(capsys, packed_folder), described(capsys, trained_run)
    assert result["format"] == "packed folder"
    # The same model: as many parameters, as many of them ternary, in fewer bytes.
    assert result["parameters"] == of_run["parameters"]
    assert result["ternary_parameters"] == of_run["ternary_parameters"]
    counts = packed.byte_counts(load(packed_folder).params)
    assert result["bytes"] == sum(counts.values())
    assert result["bytes_by_type"]["ternary i2_s"] == counts["ternary"]
    assert result["bytes_by_type"]["int8 rows"] == counts["tables"]
    assert "tensors" not in described(capsys, packed_folder, "--no_tensors")


def test_the_text(packed_folder: Path, capsys: Captured):
    assert main([str(packed_folder)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert f"model        {packed_folder}: packed folder\n" in out
    assert "% ternary\n" in out and "  layout " in out
    assert (
        "ternary i2_s   16 x 16              group_0/block_0/mixer/value/kernel  (ternary)" in out
    )


@pytest.fixture
def hugging_face(tmp_path: Path) -> Path:
    """A BitNet folder in two files, as `transformers` packs one."""
    config = {"model_type": "bitnet", "quantization_config": {"quant_method": "bitnet"}}
    (tmp_path / "config.json").write_text(json.dumps(config))
    first = {"model.layers.0.mlp.up_proj.weight": np.zeros((4, 8), np.uint8)}
    second = {
        "lm_head.weight": np.zeros((3, 8), np.float16),
        "norm\x1b[31m": np.ones(8, np.float32),
    }
    save_file(first, tmp_path / "model-1.safetensors", {"format": "pt"})
    save_file(second, tmp_path / "model-2.safetensors")
    names = {name: "model-1.safetensors" for name in first}
    names |= {name: "model-2.safetensors" for name in second}
    (tmp_path / "model.safetensors.index.json").write_text(json.dumps({"weight_map": names}))
    return tmp_path


def test_a_hugging_face_folder(hugging_face: Path, capsys: Captured):
    result = described(capsys, hugging_face)
    assert result["architecture"] == "bitnet, quantised by bitnet"
    tensors = {tensor.pop("name"): tensor for tensor in result["tensors"]}
    packed_rows = {"type": "U8, 2 bits", "shape": [16, 8], "bytes": 32, "ternary": True}
    assert tensors["model.layers.0.mlp.up_proj.weight"] == packed_rows
    head = {"type": "F16", "shape": [3, 8], "bytes": 48, "ternary": False}
    assert tensors["lm_head.weight"] == head
    assert result["ternary_parameters"] == 128 and result["parameters"] == 128 + 24 + 8
    assert result["metadata"] == {"format": "pt"}
    assert "tokenizer.json" in result["tokenizer"]["error"]
    assert main([str(hugging_face)]) == ExitCode.OK
    assert "\x1b" not in capsys.readouterr().out


def test_a_gguf_file(tmp_path: Path, capsys: Captured):
    path = tmp_path / "model.gguf"
    writer = GGUFWriter(path, "bitnet\x1b[31m")
    writer.add_block_count(2)
    writer.add_token_list([b"a"] * 40)
    writer.add_chat_template("{{ messages }}\n" * 50)
    writer.add_tensor("norm", np.ones(8, np.float32))
    ternary = np.zeros((3, 66), np.uint8)  # 256 codes and a scale a row
    writer.add_tensor("blk.0", ternary, raw_dtype=GGMLQuantizationType.TQ2_0)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    result = described(capsys, path)
    assert result["format"] == "GGUF" and result["config"] == {"bitnet\x1b[31m.block_count": 2}
    assert result["tensors"] == [
        {"name": "norm", "type": "F32", "shape": [8], "bytes": 32, "ternary": False},
        {"name": "blk.0", "type": "TQ2_0", "shape": [3, 256], "bytes": 198, "ternary": True},
    ]
    assert result["tokenizer"]["tokenizer.ggml.tokens"] == "40 values"
    assert main([str(path)]) == ExitCode.OK
    out = capsys.readouterr().out
    assert "parameters   776 (776), 99.0% ternary" in out
    assert "{{ messages }} {{" in out and "(749 characters)" in out and "\x1b" not in out
    path.write_bytes(path.read_bytes()[:-100])
    assert main([str(path)]) == ExitCode.DATA
    assert str(path) in capsys.readouterr().err


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("model-2.safetensors", b"\xff" * 100, "model-2.safetensors can't be read"),
        ("model-2.safetensors", b"\x08\0\0\0\0\0\0\0{}", "model-2.safetensors can't be read"),
        ("model.safetensors.index.json", b'{"weight_map": {"a": "../b"}}', "outside of its folder"),
        ("model.safetensors.index.json", b'{"weight_map": 3}', "no weight_map"),
        ("model.safetensors.index.json", b"[" * 100_000, "can't be read"),
        ("config.json", b"[]", "config.json isn't a JSON object"),
    ],
)
def test_damaged_files(
    hugging_face: Path, capsys: Captured, file: str, content: bytes, message: str
):
    (hugging_face / file).write_bytes(content)
    assert main([str(hugging_face)]) == ExitCode.DATA
    err = capsys.readouterr().err
    assert message in err and err.startswith("error: ")


def test_what_is_no_model(tmp_path: Path, capsys: Captured):
    for path in (tmp_path, tmp_path / "nothing"):
        assert main([str(path)]) == ExitCode.DATA
        assert capsys.readouterr().err.startswith(f"error: {path} isn't")


def test_no_weight_is_read(packed_folder: Path, capsys: Captured, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(jax, "device_put", None)
    assert described(capsys, packed_folder)["parameters"] > 0
