from __future__ import annotations

import dataclasses
import json
from pathlib import Path

import jax
import numpy as np
import pytest

from bitttt_jax.config import DataConfig, MeshConfig, SourceConfig, TokenizerConfig, TrainConfig
from bitttt_jax.data.chat_templates import ROLES
from bitttt_jax.data.prepare import prepare
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.training.setup import (
    Feed,
    compile_steps,
    make_mesh,
    new_state,
    open_data,
    vocabulary_ahead,
)
from bitttt_jax.training.step import TrainState, init_state
from tests.data.chats import make_chats, write_chats
from tests.training.samples import make_batch, make_config, make_run_config, write_texts


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_texts(tmp_path_factory.mktemp("setup") / "text")


def silent() -> Console:
    return Console(mode="silent")


def one_device() -> jax.sharding.Mesh:
    return meshes.make_mesh(MeshConfig(), jax.devices()[:1])


def test_rows_come_back_in_their_places():
    mesh = meshes.make_mesh(MeshConfig(data=2, fsdp=2, tensor=2))
    feed, batch = Feed(mesh, 8), make_batch(0)
    assert feed.rows == range(8)
    found = feed.to_devices(batch)  # type: ignore[arg-type]
    shapes = feed.abstract(32)
    for name, rows_BT in batch.items():
        np.testing.assert_array_equal(found[name], rows_BT)
        assert found[name].sharding == shapes[name].sharding
        assert found[name].sharding.shard_shape((8, 32)) == (2, 32)


def test_rows_of_a_process_that_are_no_neighbours(monkeypatch: pytest.MonkeyPatch):
    """As where a host's devices don't stand side by side in the mesh."""
    own = np.array([1, 2, 6])
    monkeypatch.setattr(meshes, "process_rows", lambda mesh, batch_size: own)
    monkeypatch.setattr(meshes, "to_global", lambda local, mesh, batch_size: local)
    feed, batch = Feed(one_device(), 8), make_batch(0)
    assert feed.rows == range(1, 7)
    read = {name: rows_BT[1:7] for name, rows_BT in batch.items()}
    found = feed.to_devices(read)  # type: ignore[arg-type]
    np.testing.assert_array_equal(found["tokens_BT"], batch["tokens_BT"][own])


def test_data_is_prepared_once_and_validation_has_the_size_of_a_part(tmp_path: Path, text: Path):
    config = make_run_config(text)
    config = dataclasses.replace(config, optim=dataclasses.replace(config.optim, accumulation=4))
    run = RunDirectory.open(tmp_path / "run", writer=True)
    data = open_data(config, run, silent())
    assert data.tokenizer.vocab_size == 257
    assert data.train.batch(0)["tokens_BT"].shape == (8, 32)
    assert data.validation is not None
    assert data.validation.batch(0)["tokens_BT"].shape == (2, 32)
    files = {path: path.stat().st_mtime_ns for path in (tmp_path / "run" / "data").iterdir()}
    again = open_data(config, run, silent())
    assert {p: p.stat().st_mtime_ns for p in (tmp_path / "run" / "data").iterdir()} == files
    np.testing.assert_array_equal(
        again.train.batch(3)["tokens_BT"], data.train.batch(3)["tokens_BT"]
    )
    assert json.loads((tmp_path / "run" / "tokenizer.json").read_text())


def test_a_run_keeps_the_template_of_its_conversations(tmp_path: Path, text: Path):
    chats = write_chats(tmp_path / "chats.jsonl", make_chats())
    for source, template in ((chats, ROLES), (text, None)):
        run = RunDirectory.open(tmp_path / source.stem, writer=True)
        data = open_data(make_run_config(source), run, silent())
        path = run.path / "chat_template.jinja"
        assert (path.read_text() if path.exists() else None) == template
        assert (data.train.num_predictions < data.train.num_tokens) == (template is not None)


def test_nothing_held_out(tmp_path: Path, text: Path):
    config = make_run_config(text)
    data = dataclasses.replace(config.data, validation_fraction=0.0)
    run = RunDirectory.open(tmp_path / "run", writer=True)
    assert open_data(dataclasses.replace(config, data=data), run, silent()).validation is None


def test_unusable_text_is_an_error(tmp_path: Path):
    config = make_run_config(tmp_path / "missing")
    run = RunDirectory.open(tmp_path / "run", writer=True)
    with pytest.raises(DataError, match="missing"):
        open_data(config, run, silent())


def with_data(source: Path | str, **tokenizer: object) -> TrainConfig:
    data = DataConfig(
        sources=(SourceConfig(path=str(source)),),
        tokenizer=TokenizerConfig(**tokenizer),  # type: ignore[arg-type]
        seq_len=32,
    )
    return dataclasses.replace(make_config(), data=dataclasses.replace(data, batch_size=8))


def test_the_vocabulary_is_known_ahead(tmp_path: Path, text: Path):
    assert vocabulary_ahead(with_data("nowhere")) == 257
    bpe = with_data(text, kind="bpe", vocab_size=300)
    assert vocabulary_ahead(bpe) == 300
    prepare(bpe.data, tmp_path / "tokens")
    assert vocabulary_ahead(with_data(tmp_path / "tokens")) == 300
    chats = write_chats(tmp_path / "chats.jsonl", make_chats(2))
    assert vocabulary_ahead(with_data(chats)) == 261
    with_template = with_data("nowhere")
    data = dataclasses.replace(with_template.data, chat_template="chatml")
    assert vocabulary_ahead(dataclasses.replace(with_template, data=data)) == 259
    tokenizer = str(tmp_path / "tokens" / "tokenizer.json")
    assert vocabulary_ahead(with_data("nowhere", kind="file", path=tokenizer)) == 300


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"mesh": MeshConfig(fsdp=3)}, "doesn't divide the number of devices, 8"),
        ({"mesh": MeshConfig(data=2)}, "there are 8 devices"),
        ({"data": DataConfig(seq_len=32, batch_size=12)}, "must be a multiple of 8"),
    ],
)
def test_a_mesh_that_cannot_be(changes: dict[str, object], message: str):
    with pytest.raises(ConfigError, match=message):
        make_mesh(dataclasses.replace(make_config(), **changes))  # type: ignore[arg-type]


def test_compiled_steps_take_one_shape_and_start_from_the_seed(tmp_path: Path):
    config = make_config()
    run = RunDirectory.open(tmp_path / "run", writer=True)
    steps = compile_steps(config, one_device(), run, silent())
    events = [(event["kind"], event["function"]) for event in run.read_events()[0]]
    assert events == [("compile", "train_step")]
    state, expected = new_state(config, steps), jax.jit(lambda: init_state(config))()
    jax.tree.map(np.testing.assert_array_equal, state, expected)
    size = sum(leaf.nbytes for leaf in jax.tree.leaves(state))
    assert steps.state_bytes == size and steps.temporary_bytes > 0
    after, _ = steps.train_step(state, steps.train_feed.to_devices(make_batch(0)))  # type: ignore[arg-type]
    assert isinstance(after, TrainState) and int(after.step) == 1
    half = Feed(steps.mesh, 4).to_devices(make_batch(0, batch=4))  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="called with"):  # never compiled again
        steps.train_step(after, half)
    other = new_state(dataclasses.replace(config, seed=1), steps)
    first = lambda state: float(state.params["embed"]["embedding"][0, 0])
    assert first(other) != first(expected)
