"""What a coverage-guided fuzzer found worth keeping, and inputs made to cost much."""

from __future__ import annotations

import base64
import json
import time
import tracemalloc
from pathlib import Path

import pytest

from tests.interop import fuzz_huggingface

CORPUS = json.loads(Path(__file__).with_name("huggingface_corpus.json").read_text())


def file(header: bytes, body: bytes = b"") -> bytes:
    return len(header).to_bytes(8, "little") + header + body


def entry(**changes: object) -> bytes:
    fields = {"dtype": "U8", "shape": [4], "data_offsets": [0, 4]} | changes
    return file(json.dumps({"w": fields}).encode(), bytes(4))


def test_inputs_of_the_fuzzer_are_read_or_refused(tmp_path: Path):
    taken = [fuzz_huggingface.one_input(base64.b64decode(text), tmp_path) for text in CORPUS]
    assert any(taken) and not all(taken)


HOSTILE = {
    "deep": ("safetensors", file(b'{"a":' + b"[" * 200_000)),
    "deep index": ("index", b'{"weight_map":' * 100_000),
    "deep config": ("config", b"[" * 1_000_000),
    "a header of 2^62 bytes": ("safetensors", (2**62).to_bytes(8, "little") + b"{}"),
    "a number of many digits": ("safetensors", entry(shape=10**4000)),
    "a shape of many numbers": ("safetensors", entry(shape=[2**40] * 20_000)),
    "a shape whose size overflows": ("safetensors", entry(shape=[2**47, 2**47, 0, 2**47])),
    "offsets of 2^63": ("safetensors", entry(data_offsets=[2**63, 2**63 + 4])),
    "turned offsets": ("safetensors", entry(data_offsets=[4, 0])),
    "true for 1": ("safetensors", entry(shape=[4, True])),
    "floats for integers": ("safetensors", entry(shape=[4.0])),
    "a type that is no text": ("safetensors", entry(dtype=["U8"])),
    "metadata that is no text": ("safetensors", file(b'{"__metadata__":{"a":[1]}}')),
    "the same name twice": (
        "safetensors",
        file(b'{"w":{"dtype":"U8","shape":[4],"data_offsets":[0,4]},"w":{}}', bytes(4)),
    ),
    "UTF-16": ("config", '{"model_type": "llama"}'.encode("utf-16")),
    "half a character": ("config", b'{"model_type": "\\ud800"}'),
    "a regular expression": (
        "config",
        json.dumps(
            {
                "model_type": "llama",
                "quantization_config": {
                    "quant_method": "bitnet",
                    "modules_to_not_convert": ["lm_head", "(a+)+$"],
                },
            }
        ).encode(),
    ),
    "many shards": (
        "index",
        json.dumps({"weight_map": {f"w{i}": f"{i}.safetensors" for i in range(50_000)}}).encode(),
    ),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_hostile_inputs_are_refused_at_little_cost(tmp_path: Path, name: str):
    kind, data = HOSTILE[name]
    tracemalloc.start()
    started = time.process_time()
    try:
        assert not fuzz_huggingface.check(kind, data, tmp_path)
        assert time.process_time() - started < 5
        assert tracemalloc.get_traced_memory()[1] < 64 * len(data) + 10_000_000
    finally:
        tracemalloc.stop()


@pytest.mark.parametrize(
    "path",
    ["../a.safetensors", "/a.safetensors", "b/a.safetensors", "..\\a.safetensors", "a.bin", ""],
)
def test_an_index_stays_in_its_folder(tmp_path: Path, path: str):
    folder = tmp_path / "model"
    (folder / "b").mkdir(parents=True)
    for place in (tmp_path, folder, folder / "b"):
        (place / "a.safetensors").write_bytes(file(b"{}"))
    index = lambda name: json.dumps({"weight_map": {"w": name}}).encode()
    assert fuzz_huggingface.check("index", index("a.safetensors"), folder)
    assert not fuzz_huggingface.check("index", index(path), folder)
