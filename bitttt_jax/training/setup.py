"""Everything that a run needs before its first step: data, mesh, compiled functions, state."""

from __future__ import annotations

import dataclasses
import functools
import math
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.experimental import multihost_utils
from jax.sharding import Mesh, NamedSharding
from jax.sharding import PartitionSpec as P

from bitttt_jax.config import TrainConfig
from bitttt_jax.data.batches import Batch, Batches
from bitttt_jax.data.chat_format import CHAT_TEMPLATE_FILE
from bitttt_jax.data.chat_format import ahead as chat_template_ahead
from bitttt_jax.data.manifest import MANIFEST_FILE, TOKENIZER_FILE, Manifest, Split
from bitttt_jax.data.prepare import prepare
from bitttt_jax.data.shards import load_tokenizer
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.distributed import mesh as meshes
from bitttt_jax.distributed.rules import shardings
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.console import Console
from bitttt_jax.runs.directory import RunDirectory
from bitttt_jax.runs.files import write_atomically
from bitttt_jax.training.evaluate import EvalSums, eval_step
from bitttt_jax.training.first_process import first_process_first
from bitttt_jax.training.step import StepMetrics, TrainState, init_state, train_step


@dataclasses.dataclass(frozen=True)
class Data:
    """The two splits of the run's text."""

    tokenizer: Tokenizer
    train: Batches
    validation: Batches | None
    """None where nothing is held out."""


@dataclasses.dataclass(frozen=True)
class Feed:
    """How the rows of a batch get from each process to the devices."""

    mesh: Mesh
    batch_size: int
    """Rows of the global batch."""

    @functools.cached_property
    def rows(self) -> range:
        """Rows that this process reads: its own, and those between if they aren't neighbours."""
        return range(int(self._own[0]), int(self._own[-1]) + 1)

    @functools.cached_property
    def _own(self) -> np.ndarray:
        return meshes.process_rows(self.mesh, self.batch_size)

    def abstract(self, seq_len: int) -> dict[str, jax.ShapeDtypeStruct]:
        """Shapes and shardings of the arrays that `to_devices` makes."""
        array_BT = jax.ShapeDtypeStruct(
            (self.batch_size, seq_len), jnp.int32, sharding=meshes.batch_sharding(self.mesh)
        )
        return dict.fromkeys(Batch.__annotations__, array_BT)

    def to_devices(self, read: Batch) -> Any:
        """Makes the rows that each process has read one batch of global, sharded arrays."""
        own = {
            name: np.asarray(rows_BT)[self._own - self.rows[0]] for name, rows_BT in read.items()
        }
        return meshes.to_global(own, self.mesh, self.batch_size)


@dataclasses.dataclass(frozen=True)
class Compiled:
    """The functions that run on the devices, and what they expect."""

    mesh: Mesh
    state_shardings: Any
    train_step: Callable[[TrainState, Any], tuple[TrainState, StepMetrics]]
    eval_step: Callable[[Any, Any], EvalSums]
    train_feed: Feed
    eval_feed: Feed
    state_bytes: int
    """Parameters and moments on a device."""
    temporary_bytes: int
    """What a train step needs on a device besides them, by the compiler's count."""


def open_data(config: TrainConfig, run: RunDirectory, console: Console) -> Data:
    """Prepares the run's tokens below its folder where that isn't done yet, and opens them.

    Raises:
      DataError: unusable input.
    """
    folder = run.path / "data"

    def prepare_here() -> None:
        if run.writer:
            with console.phase("data", "reading and tokenising"):
                prepare(config.data, folder, progress=report)
                load_tokenizer(folder).save(run.path / TOKENIZER_FILE)
                template = Manifest.load(folder).chat_template
                if template is not None:
                    write_atomically(run.path / CHAT_TEMPLATE_FILE, template)

    def report(activity: str, done: int, total: int) -> None:
        run.update(phase=f"{activity}: {100 * done // max(total, 1)} %")

    first_process_first(prepare_here)
    run.update(phase="")
    # Validation knows no accumulation: its batches are as large as the parts of a training step.
    part = config.data.batch_size // config.optim.accumulation
    is_held_out = bool(Manifest.load(folder).split("validation"))
    return Data(
        load_tokenizer(folder),
        open_split(config, folder, "train"),
        open_split(config, folder, "validation", part) if is_held_out else None,
    )


def open_split(
    config: TrainConfig, folder: Path, split: Split, batch_size: int | None = None
) -> Batches:
    """Opens one split as the run reads it, by default in batches of `data.batch_size` rows."""
    return Batches(
        folder,
        split,
        seq_len=config.data.seq_len,
        batch_size=batch_size or config.data.batch_size,
        seed=config.seed,
        align=config.model.ttt.mini_batch if config.model.uses_ttt else 1,
    )


def vocabulary_ahead(config: TrainConfig) -> int:
    """Size of the tokenizer that the run will have, as far as that is known without its text."""
    for source in config.data.sources:
        if (Path(source.path) / MANIFEST_FILE).is_file():
            return Manifest.load(source.path).vocab_size
    tokenizer = config.data.tokenizer
    if tokenizer.kind == "bpe":
        return tokenizer.vocab_size
    if tokenizer.kind == "file":
        return Tokenizer.load(tokenizer.path).vocab_size
    template = chat_template_ahead(config.data)
    return Tokenizer.bytes(() if template is None else template.special_names).vocab_size


def make_mesh(config: TrainConfig) -> Mesh:
    """Arranges the devices as the run wants them.

    Raises:
      ConfigError: the devices, the mesh and the batch size don't fit together.
    """
    mesh = meshes.make_mesh(config.mesh)
    meshes.check_batch_size(config.data.batch_size, config.optim.accumulation, mesh)
    return mesh


def compile_steps(config: TrainConfig, mesh: Mesh, run: RunDirectory, console: Console) -> Compiled:
    """Compiles the train step for the run's only shapes, and the eval step when it is first used.

    Args:
      config: the run's, its vocabulary size known.
      mesh: made by `make_mesh`.
      run: where it is recorded, if this process has started the run.
      console: where it is shown.

    Raises:
      ConfigError: the mesh doesn't divide the model.
    """
    batch_size, parts = config.data.batch_size, config.optim.accumulation
    train_feed, eval_feed = Feed(mesh, batch_size), Feed(mesh, batch_size // parts)
    abstract = jax.eval_shape(functools.partial(init_state, config))
    state_shardings = shardings(abstract, mesh)
    by_row, everywhere = meshes.batch_sharding(mesh), NamedSharding(mesh, P())
    train = jax.jit(
        functools.partial(train_step, config),
        in_shardings=(state_shardings, by_row),
        out_shardings=(state_shardings, everywhere),
        donate_argnums=0,
    )
    evaluate = jax.jit(
        functools.partial(eval_step, config),
        in_shardings=(state_shardings.params, by_row),
        out_shardings=everywhere,
    )

    def compile_one(name: str, function: Any, *arguments: Any) -> Any:
        began = time.monotonic()
        run.update(phase=f"compiling {name}")
        with console.phase("compile", name):
            compiled = function.lower(*arguments).compile()
        run.event("compile", function=name, seconds=round(time.monotonic() - began, 3))
        return compiled

    seq_len = config.data.seq_len
    with jax.set_mesh(mesh):
        compiled_train = compile_one("train_step", train, abstract, train_feed.abstract(seq_len))
    run.update(phase="")

    @functools.cache
    def compiled_eval() -> Any:
        with jax.set_mesh(mesh):
            return compile_one("eval_step", evaluate, abstract.params, eval_feed.abstract(seq_len))

    return Compiled(
        mesh=mesh,
        state_shardings=state_shardings,
        train_step=compiled_train,
        eval_step=lambda params, batch: compiled_eval()(params, batch),
        train_feed=train_feed,
        eval_feed=eval_feed,
        state_bytes=_bytes_per_device(abstract, state_shardings),
        temporary_bytes=_temporary_bytes(compiled_train),
    )


def new_state(config: TrainConfig, compiled: Compiled) -> TrainState:
    """The state before the first step, born sharded."""
    with jax.set_mesh(compiled.mesh):
        make = jax.jit(
            functools.partial(init_state, config), out_shardings=compiled.state_shardings
        )
        return make()


def saved_state(
    config: TrainConfig, compiled: Compiled, checkpoints: Checkpoints, step: int
) -> TrainState:
    """The state of a checkpoint, on the run's mesh whatever mesh it was saved from.

    Raises:
      CheckpointError: it is damaged, or another model's.
    """
    target = jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        jax.eval_shape(functools.partial(init_state, config)),
        compiled.state_shardings,
    )
    return checkpoints.restore(target, step)


def open_checkpoints(config: TrainConfig, run: RunDirectory) -> Checkpoints:
    """The run's checkpoints, to be written."""

    def as_process_0(opinion: bool) -> bool:
        if jax.process_count() == 1:
            return opinion
        return bool(multihost_utils.broadcast_one_to_all(np.array(opinion)))

    return Checkpoints(run.checkpoints_path, config.checkpoint, agree=as_process_0)


def _bytes_per_device(abstract: Any, tree_shardings: Any) -> int:
    """Bytes of a tree on the device that holds most of it."""
    return sum(
        math.prod(sharding.shard_shape(leaf.shape)) * leaf.dtype.itemsize
        for leaf, sharding in zip(
            jax.tree.leaves(abstract), jax.tree.leaves(tree_shardings), strict=True
        )
    )


def _temporary_bytes(compiled: Any) -> int:
    """What a step needs on a device besides its arguments, by the compiler's count."""
    analysis = compiled.memory_analysis()
    if analysis is None:
        return 0
    results = analysis.output_size_in_bytes - analysis.alias_size_in_bytes
    return int(analysis.temp_size_in_bytes + max(results, 0))
