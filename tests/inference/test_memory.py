from __future__ import annotations

import dataclasses
from pathlib import Path

import jax
import numpy as np
import pytest
from jax.sharding import NamedSharding, PartitionSpec

from bitttt_jax.data import safetensors
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.inference import memory, steps
from bitttt_jax.inference.engine import Engine
from bitttt_jax.inference.prefixes import SavedState
from bitttt_jax.inference.requests import Request
from tests.inference import samples
from tests.inference.samples import CONFIGS, GREEDY, random_prompt


def remembered(name: str, path: Path) -> list[int]:
    """Saves what a model keeps of a request; returns all tokens of it."""
    engine, prompt = Engine(samples.model(name)), random_prompt(30)
    tokens = [*prompt, *engine.submit(Request(prompt, 12, GREEDY)).result().tokens]
    assert engine.save(path, np.array(tokens)) == 41
    return tokens


@pytest.mark.parametrize("name", CONFIGS)
def test_a_loaded_memory_goes_on_as_if_nothing_had_been(name: str, tmp_path: Path):
    tokens = remembered(name, tmp_path / "m")
    engine = Engine(samples.model(name))
    assert engine.load(tmp_path / "m").tolist() == tokens[:41]
    asked = Request([*tokens, 3, 1], 10, GREEDY)
    found = engine.submit(asked).result()
    assert found.reused_tokens == 41
    assert found.tokens == Engine(samples.model(name)).submit(asked).result().tokens
    assert list(tmp_path.iterdir()) == [tmp_path / "m"]


def test_a_memory_can_be_forked():
    """Two requests that start from one state don't see each other."""
    model = samples.model("ttt_mlp")
    engine, tokens = Engine(model, slots=2), random_prompt(30)
    engine.submit(Request(tokens, 1, GREEDY)).result()
    asked = [Request([*tokens, n], 9, GREEDY) for n in (1, 2)]
    for request, handle in zip(asked, engine.run(asked), strict=True):
        assert handle.reused_tokens == 30
        assert handle.result().tokens == Engine(model).submit(request).result().tokens


def test_the_values_are_the_same_after_a_mesh(tmp_path: Path):
    """A state whose rows are spread over devices is saved as one that isn't."""
    model = samples.model("hybrid")
    state = steps.start(model.config, model.params, 1, 256)
    rng = np.random.default_rng(0)
    drawn = jax.tree.map(lambda leaf: rng.normal(size=leaf.shape).astype(leaf.dtype), state)
    drawn = drawn._replace(position_B=np.array([30], np.int32))
    mesh = jax.make_mesh((2,), ("tensor",), axis_types=(jax.sharding.AxisType.Auto,))

    def spread(leaf):
        axes = [None] * leaf.ndim
        if leaf.shape[-1] % 2 == 0:
            axes[-1] = "tensor"
        return jax.device_put(leaf, NamedSharding(mesh, PartitionSpec(*axes)))

    saved = SavedState(np.arange(30, dtype=np.int32), jax.tree.map(spread, drawn))
    memory.save(tmp_path / "m", model, model.config, saved)
    loaded = memory.load(tmp_path / "m", model, model.config, None)
    jax.tree.map(np.testing.assert_array_equal, loaded.state, drawn)


def test_int8_caches_are_kept(tmp_path: Path):
    model, prompt = samples.model("hybrid"), random_prompt(30)
    engine = Engine(model, cache="int8")
    engine.submit(Request(prompt, 5, GREEDY)).result()
    engine.save(tmp_path / "m", np.array(prompt))
    other = Engine(model, cache="int8")
    assert len(other.load(tmp_path / "m")) == 29
    with pytest.raises(DataError, match=r"mixer/key is int8.*not float32"):
        Engine(model).load(tmp_path / "m")


def test_the_memory_of_another_model_is_refused(tmp_path: Path):
    remembered("ttt_linear", tmp_path / "m")
    model = samples.model("ttt_linear")
    norm = {"scale": 1.01 * model.params["final_norm"]["scale"]}
    trained_on = dataclasses.replace(model, params=model.params | {"final_norm": norm})
    for other in (samples.model("attention"), trained_on):
        with pytest.raises(DataError, match="is the memory of another model"):
            Engine(other).load(tmp_path / "m")


def test_a_window_that_is_too_narrow_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    monkeypatch.setattr(steps, "PREFILL_TOKENS", 16)
    monkeypatch.setattr(steps, "CACHE_STEP", 1)
    model = samples.model("attention", context=6)
    engine, prompt = Engine(model, overflow="slide"), random_prompt(60)
    engine.submit(Request(prompt, 5, GREEDY)).result()
    engine.save(tmp_path / "m", np.array(prompt))
    assert len(Engine(model, overflow="slide").load(tmp_path / "m")) == 60
    with pytest.raises(DataError, match="keeps the latest tokens only"):
        Engine(model, overflow="slide", context=8).load(tmp_path / "m")


def test_damaged_files_are_refused(tmp_path: Path):
    remembered("ttt_linear", path := tmp_path / "m")
    engine, whole = Engine(samples.model("ttt_linear")), path.read_bytes()
    tensors, metadata = safetensors.read(path)

    def refused(message: str, changed: dict[str, np.ndarray], **other: str) -> None:
        safetensors.write(path, changed, metadata | other)
        with pytest.raises(DataError, match=message):
            engine.load(path)

    refused("isn't a memory that this program reads", tensors, format="bitttt-memory-9")
    refused("position_B is missing", {k: v for k, v in tensors.items() if k != "position_B"})
    refused("surplus isn't part", tensors | {"surplus": np.zeros(3)})
    refused("isn't the number of its tokens", tensors | {"tokens": tensors["tokens"][1:]})
    refused("aren't a row of integers", tensors | {"tokens": tensors["tokens"][None]})
    refused("slots", tensors, slots="many")
    path.write_bytes(whole[:-1])
    with pytest.raises(DataError, match="isn't a whole safetensors file"):
        engine.load(path)
    with pytest.raises(DataError, match="can't be read"):
        engine.load(tmp_path / "nowhere")


def test_nothing_to_save(tmp_path: Path):
    with pytest.raises(ConfigError, match="nothing to save"):
        Engine(samples.model("attention")).save(tmp_path / "m", np.array(random_prompt(30)))
    engine, prompt = Engine(samples.model("attention")), random_prompt(30)
    engine.submit(Request(prompt, 2, GREEDY)).result()
    with pytest.raises(DataError, match="can't be written"):
        engine.save(tmp_path / "nowhere" / "m", np.array(prompt))
