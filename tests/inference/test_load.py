from __future__ import annotations

import dataclasses
import functools
import shutil
from pathlib import Path

import jax
import numpy as np
import pytest

from bitttt_jax.config import CheckpointConfig, Mixer, ModelConfig, TrainConfig
from bitttt_jax.config_loading import to_json, with_vocabulary
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import CheckpointError, ConfigError, DataError
from bitttt_jax.inference.load import load_run
from bitttt_jax.inference.model import Model
from bitttt_jax.models.transformer import init_params
from bitttt_jax.runs.checkpoints import Checkpoints

CONFIG = TrainConfig(model=ModelConfig(dim=8, num_layers=1, num_heads=1, mlp_dim=8))


@functools.cache
def params_of_step(step: int):
    config = with_vocabulary(CONFIG, 257).model
    return jax.jit(init_params, static_argnums=0)(config, jax.random.key(step))


@pytest.fixture(scope="module")
def saved_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A run directory with the checkpoints of two steps, moments included."""
    path = tmp_path_factory.mktemp("runs") / "saved"
    path.mkdir()
    (path / "config.json").write_text(to_json(CONFIG))
    Tokenizer.bytes().save(path / "tokenizer.json")
    with Checkpoints(path / "ckpt", CheckpointConfig(every_minutes=0)) as checkpoints:
        for step in (3, 12):
            params = params_of_step(step)
            checkpoints.save(step, {"params": params, "optimizer": params}, force=True)
    return path


@pytest.fixture
def run(saved_run: Path, tmp_path: Path) -> Path:
    """A copy that may be damaged."""
    return shutil.copytree(saved_run, tmp_path / "runs" / "copy")


@pytest.mark.parametrize(("asked_for", "step"), [(None, 12), (3, 3)])
def test_parameters_of_a_step(saved_run: Path, asked_for: int | None, step: int):
    model = load_run(saved_run, asked_for)
    assert model.step == step
    assert model.run == with_vocabulary(CONFIG, 257)
    assert model.config.vocab_size == 320
    assert model.tokenizer.fingerprint == Tokenizer.bytes().fingerprint
    jax.tree.map(np.testing.assert_array_equal, model.params, params_of_step(step))


def test_missing_step(saved_run: Path):
    with pytest.raises(CheckpointError, match="complete steps: 3, 12"):
        load_run(saved_run, 5)


def test_nothing_there(tmp_path: Path):
    with pytest.raises(DataError, match=r"nothing isn't there\n  Try: --model=DIR"):
        load_run(tmp_path / "nothing")


def test_a_file(tmp_path: Path):
    (tmp_path / "model.bin").touch()
    with pytest.raises(DataError, match=r"model.bin isn't a run directory"):
        load_run(tmp_path / "model.bin")


@pytest.mark.parametrize("place", ["ckpt", "ckpt/12", ".."])
def test_a_folder_beside_the_run_is_set_right(run: Path, place: str):
    with pytest.raises(DataError) as caught:
        load_run(run.joinpath(place).resolve())
    assert "it has no config.json" in caught.value.what
    assert caught.value.fix == f"--model={run}"


def test_no_checkpoint_yet(run: Path):
    shutil.rmtree(run / "ckpt" / "3")
    (run / "ckpt" / "12" / "_CHECKPOINT_METADATA").unlink()  # as a half-copied one
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        load_run(run)
    shutil.rmtree(run / "ckpt")
    with pytest.raises(CheckpointError, match="has no complete checkpoint"):
        load_run(run)


def test_the_chat_template_of_a_run(run: Path):
    assert load_run(run).chat_template is None
    (run / "chat_template.jinja").write_text("{{ é }}", "utf-8")
    assert load_run(run).chat_template == "{{ é }}"
    (run / "chat_template.jinja").write_bytes(b"\xff")
    with pytest.raises(DataError, match=r"chat_template\.jinja is no chat template"):
        load_run(run)


def test_damaged_files(run: Path):
    (run / "tokenizer.json").unlink()
    with pytest.raises(DataError, match=r"tokenizer\.json: No such file"):
        load_run(run)
    (run / "config.json").write_text("{")
    Tokenizer.bytes().save(run / "tokenizer.json")
    with pytest.raises(ConfigError, match=r"config\.json is not a valid configuration"):
        load_run(run)


def test_parameters_of_another_model(run: Path):
    other = dataclasses.replace(CONFIG, model=dataclasses.replace(CONFIG.model, mlp_dim=16))
    (run / "config.json").write_text(to_json(other))
    with pytest.raises(CheckpointError, match=r"12 doesn't fit: 3 arrays differ"):
        load_run(run)


@pytest.mark.parametrize("mixer", ["attention", "ttt_linear"])
def test_the_models_logits(mixer: Mixer):
    """Those of any prefix are the same."""
    model_config = ModelConfig(64, 8, 1, 1, mlp_dim=8, mixers=(mixer,), compute_dtype="float32")
    params = jax.jit(init_params, static_argnums=0)(model_config, jax.random.key(0))
    model = Model(TrainConfig(model=model_config), params, Tokenizer.bytes(), "random")
    tokens = np.random.default_rng(0).integers(0, 64, 21)
    logits = model.logits(tokens)
    assert logits.shape == (21, 64)
    np.testing.assert_allclose(model.logits(tokens[:5]), logits[:5], rtol=0, atol=1e-5)
    with pytest.raises(ValueError, match="64 tokens, not 64"):
        model.logits(np.array([64]))
    with pytest.raises(ValueError, match="one row"):
        model.logits(tokens[:0])
