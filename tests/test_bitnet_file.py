"""The synthetic file is laid out as the published one; the slow test loads it whole."""

from __future__ import annotations

import collections
import importlib
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from bitttt_jax.interop import gguf_model
from bitttt_jax.interop.gguf import GGUFFile
from bitttt_jax.interop.gguf_writer import write
from bitttt_jax.ternary.packing import PackedTernary

ROOT = Path(__file__).parent.parent


@pytest.fixture
def bitnet_file(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    monkeypatch.syspath_prepend(str(ROOT))
    return importlib.import_module("benchmarks.bitnet_file")


def test_a_file_of_one_block(bitnet_file: ModuleType, tmp_path: Path):
    path = tmp_path / "a.gguf"
    write(path, bitnet_file.metadata(1, 300), bitnet_file.tensors(1, 300))
    model = gguf_model.load(path)
    block = model.params["group_0"]["block_0"]
    assert isinstance(block["mlp"]["down"]["kernel"], PackedTernary)
    assert block["mlp"]["down"]["kernel"].shape == (6912, 2560)
    assert model.chat_template is not None
    assert "Assistant: " in model.chat_template
    assert (model.tokenizer.bos_id, model.tokenizer.eos_id) == (300, 301)


def test_its_size_and_numbers(bitnet_file: ModuleType):
    entries, tensors = bitnet_file.metadata(), bitnet_file.tensors()
    assert len(entries) == 24
    assert len(entries["tokenizer.ggml.tokens"]) == len(set(entries["tokenizer.ggml.tokens"]))
    assert len(entries["tokenizer.ggml.tokens"]) == 128_256
    assert len(entries["tokenizer.ggml.merges"]) == 280_147
    assert collections.Counter(tensor.type for tensor in tensors) == {36: 210, 0: 121, 1: 1}
    ternary = sum(np.prod(tensor.shape) for tensor in tensors if tensor.type == 36)
    assert ternary == 2_084_044_800


@pytest.mark.slow
def test_the_whole_file(bitnet_file: ModuleType, tmp_path: Path):
    path = tmp_path / "a.gguf"
    write(path, bitnet_file.metadata(), bitnet_file.tensors())
    assert path.stat().st_size == pytest.approx(1.187e9, rel=0.01)
    model = gguf_model.load(path, "int8")
    assert (model.config.num_layers, model.config.vocab_size, model.context) == (30, 128_256, 4096)
    file, rng = GGUFFile(path), np.random.default_rng(0)
    names = {"query": "attn_q", "value": "attn_v"}
    for i in rng.integers(0, 30, 4):
        for ours, theirs in names.items():
            tensor = file.tensors[f"blk.{i}.{theirs}.weight"]
            kernel = model.params[f"group_{i}"]["block_0"]["mixer"][ours]["kernel"]
            assert np.asarray(kernel.codes).tobytes() == file.raw(tensor)[:-32].tobytes()
