from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bitttt_jax.errors import DataError
from bitttt_jax.interop import dense, huggingface
from bitttt_jax.interop.huggingface_export import export
from tests.interop.test_huggingface_export import sample


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("exported") / "model"
    export(folder, sample(mixers=("ttt_linear",)))
    return folder


def change(folder: Path, model: dict[str, Any], **fields: Any) -> None:
    values = json.loads((folder / "config.json").read_text())
    values |= fields
    values["model"] |= model
    (folder / "config.json").write_text(json.dumps(values))


@pytest.mark.parametrize(
    ("model", "fields", "message"),
    [
        ({}, {"format_version": 2}, "format_version is 2"),
        ({}, {"format_version": None}, "format_version is missing"),
        ({"dim": "wide"}, {}, "describes no model"),
        ({"dims": 16}, {}, "describes no model"),
        ({"num_layers": 0}, {}, "model.num_layers must be positive"),
        ({"num_layers": 10**9}, {}, "model.num_layers is beyond"),
        ({"vocab_size": 2**62}, {}, "model.vocab_size is beyond"),
        ({"vocab_size": -1}, {}, "model.vocab_size is beyond"),
        ({"num_heads": 2**62, "head_dim": 2}, {}, "model.num_heads is beyond"),
        ({"ttt": {"mini_batch": 2**40}}, {}, "model.ttt.mini_batch is beyond"),
        ({"vocab_size": 256}, {}, r"embed.embedding has the shape \[257, 16\]"),
        ({"num_layers": 2}, {}, "lacks the tensor group_1"),
        ({"mixers": ["attention"]}, {}, "lacks the tensor group_0.block_0.mixer.key.kernel"),
    ],
    ids=str,
)
def test_a_config_that_is_not_of_the_weights(
    tmp_path: Path, folder: Path, model: dict[str, Any], fields: dict[str, Any], message: str
):
    for path in folder.iterdir():
        (tmp_path / path.name).write_bytes(path.read_bytes())
    change(tmp_path, model, **fields)
    with pytest.raises(DataError, match=message):
        huggingface.load(tmp_path)


def test_the_documented_names_are_in_the_file(folder: Path):
    weights = dense.Weights(folder)
    assert weights.shape("embed.embedding") == (257, 16)
    assert weights.shape("group_0.block_0.mixer.query_key.kernel") == (16, 16)
    assert weights.shape("group_0.block_0.mixer.fast.w1") == (2, 8, 8)
    values = json.loads((folder / "config.json").read_text())
    assert values["model_type"] == "bitttt" and values["model"]["mixers"] == ["ttt_linear"]
