"""Everything that a run needs before its first step: data, mesh, state, compiled functions."""

from __future__ import annotations

import dataclasses
import functools
import hashlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.batches import Batch, Batches
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import load_tokenizer
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.distributed.rules import shardings
from bitttt_jax.errors import DataError
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.training.evaluate import EvalSums, eval_step
from bitttt_jax.training.step import StepMetrics, TrainState, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits of the run's text."""

    tokenizer: Tokenizer
    train: Batches
    validation: Batches | None
    """None where nothing is held out."""

    def bytes_per_token(self, split: Batches) -> float:
        """Bytes of text that a token stands for."""
        return split.text_bytes / split.num_tokens


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The functions that run on the devices, and what they expect."""

    mesh: Mesh
    state_shardings: Any
    train_step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[Any, Any], EvalSums]
    batch_size: int

    def to_devices(self, rows: Batch) -> Any:
        """This process's rows of a batch as part of the global, sharded one."""
        return meshes.to_global(rows, self.mesh, self.batch_size)

    @functools.cached_property
    def rows(self) -> range:
        """Rows of the global batch that this process reads."""
        rows = meshes.process_rows(self.mesh, self.batch_size)
        return range(int(rows[0]), int(rows[-1]) + 1)


def open_data(config: TrainConfig, run: RunDirectory, console: Console) -> Data:
    """Prepares the run's tokens below its folder where that isn't done yet, and opens them.

    Raises:
      DataError: unusable input.
    """
    folder = run.path / "data"
    if run.writer:
        with console.phase("data", "reading and tokenising"):
            prepare(config.data, folder)
            load_tokenizer(folder).save(run.path / "tokenizer.json")
    if jax.process_count() > 1:
        multihost_utils.sync_global_devices("data is prepared")
    return Data(
        load_tokenizer(folder), open_split(config, folder, "train"), _held_out(config, folder)
    )


def open_split(config: TrainConfig, folder: Path, split: Any) -> Batches:
    """Opens one split as the run reads it."""
    return Batches(
        folder,
        split,
        seq_len=config.data.seq_len,
        batch_size=config.data.batch_size,
        seed=config.seed,
        align=config.model.ttt.mini_batch if config.model.uses_ttt else 1,
    )


def _held_out(config: TrainConfig, folder: Path) -> Batches | None:
    if config.data.validation_fraction == 0:
        return None
    return open_split(config, folder, "validation")


def compile_steps(config: TrainConfig, console: Console) -> Compiled:
    """Makes the mesh and compiles train and eval step for the run's only shapes.

    Raises:
      ConfigError: the devices, the mesh and the batch size don't fit together.
    """
    mesh = meshes.make_mesh(config.mesh)
    batch_size = config.data.batch_size
    meshes.check_batch_size(batch_size, config.optim.accumulation, mesh)
    abstract = jax.eval_shape(functools.partial(init_state, config))
    state_shardings = shardings(abstract, mesh)
    by_row, replicated = meshes.batch_sharding(mesh), NamedSharding(mesh, P())
    shape = (batch_size, config.data.seq_len)
    batch = {
        name: jax.ShapeDtypeStruct(shape, jnp.int32, sharding=by_row)
        for name in Batch.__required_keys__
    }
    step = jax.jit(
        functools.partial(train_step, config),
        in_shardings=(state_shardings, by_row),
        out_shardings=(state_shardings, replicated),
        donate_argnums=0,
    )
    evaluate = jax.jit(
        functools.partial(eval_step, config),
        in_shardings=(state_shardings.params, by_row),
        out_shardings=replicated,
    )
    with jax.set_mesh(mesh):
        with console.phase("compile", "train_step"):
            compiled_step = step.lower(abstract, batch).compile()
        with console.phase("compile", "eval_step"):
            compiled_eval = evaluate.lower(abstract.params, batch).compile()
    return Compiled(mesh, state_shardings, compiled_step, compiled_eval, batch_size)


def restore_or_init(
    config: TrainConfig, compiled: Compiled, checkpoints: Checkpoints, step: int | None
) -> TrainState:
    """The state of a checkpoint, or a new one; either is born sharded."""
    make = functools.partial(init_state, config)
    if step is None:
        with jax.set_mesh(compiled.mesh):
            return jax.jit(make, out_shardings=compiled.state_shardings)()
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(make),
        compiled.state_shardings,
    )
    return checkpoints.restore(target, step)


def open_checkpoints(config: TrainConfig, run: RunDirectory, config_json: str) -> Checkpoints:
    """The run's checkpoints, each marked with a hash of the configuration."""
    digest = hashlib.sha256(config_json.encode()).hexdigest()

    def as_process_0(opinion: bool) -> bool:
        if jax.process_count() == 1:
            return opinion
        return bool(multihost_utils.broadcast_one_to_all(jnp.array(opinion)))

    return Checkpoints(
        run.checkpoints_path, config.checkpoint, metadata={"config": digest}, agree=as_process_0
    )


def check_batch(batches: Batches, name: str) -> None:
    """Refuses a split without a single token."""
    if batches.num_tokens == 0:
        raise DataError(f"the {name} split has no tokens", fix="more text")
