from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from bitttt_jax.data import safetensors
from bitttt_jax.errors import DataError
from bitttt_jax.interop.weights import Weights

ONE = {"w": np.arange(6, dtype=np.float32).reshape(2, 3)}


def index(folder: Path, places: dict[str, str]) -> None:
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": places}))


def test_a_tensor_must_be_of_the_expected_shape_and_kind(tmp_path: Path):
    safetensors.write(tmp_path / "model.safetensors", ONE | {"codes": np.zeros(4, np.int8)}, {})
    weights = Weights(tmp_path)
    np.testing.assert_array_equal(weights.read("w", 2, 3), ONE["w"])
    with pytest.raises(DataError, match=r"w has the shape \[2, 3\]\n.*\[3, 2\]"):
        weights.read("w", 3, 2)
    with pytest.raises(DataError, match="lacks the tensor v"):
        weights.read("v", 2)
    with pytest.raises(DataError, match="codes holds int8, not floats"):
        weights.floats("codes", 4)


def test_a_tensor_that_nobody_reads_is_refused(tmp_path: Path):
    safetensors.write(tmp_path / "model.safetensors", ONE | {"q_norm.weight": ONE["w"]}, {})
    weights = Weights(tmp_path)
    weights.read("w", 2, 3)
    with pytest.raises(DataError, match=r"has the tensor 'q_norm\.weight'"):
        weights.check_all_read()
    weights.check_all_read(("*_norm.weight",))


def test_shards_that_are_missing_or_say_the_same(tmp_path: Path):
    safetensors.write(tmp_path / "a.safetensors", ONE, {})
    index(tmp_path, {"w": "a.safetensors", "v": "b.safetensors"})
    with pytest.raises(DataError, match=r"b\.safetensors isn't there"):
        Weights(tmp_path)
    safetensors.write(tmp_path / "b.safetensors", ONE, {})
    with pytest.raises(DataError, match="the tensor 'w' is in two files"):
        Weights(tmp_path)
