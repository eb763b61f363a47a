"""Loading a model: a run, packed, or from another program's files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.config_loading import load_config, with_vocabulary
from bitttt_jax.data.manifest import TOKENIZER_FILE
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import CheckpointError, ConfigError, DataError
from bitttt_jax.inference import packed_model
from bitttt_jax.inference.model import Model
from bitttt_jax.interop.foreign import WeightType
from bitttt_jax.models import transformer
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.directory import RunDirectory


def load(
    path: str | Path,
    *,
    step: int | None = None,
    weights: WeightType = "bfloat16",
    revision: str | None = None,
) -> Model:
    """Loads a model, of whichever kind a folder holds.

    Args:
      path: a run directory (`load_run`), or a folder of a packed model (`packed_model.load`).
      step: training step of a run's checkpoint; the newest one by default.
      weights: how weights that aren't ternary are kept, of a model that another program made.
      revision: branch, tag or commit of a model on the Hub.

    Raises:
      DataError: no such folder, it holds no model, or it is damaged.
      CheckpointError: no complete checkpoint, or not that one.
      ConfigError: a step of a packed model, which has only one; types or a revision for a model
        that has its own.
    """
    if weights != "bfloat16" or revision:
        raise ConfigError(
            f"{path} was made here: it has neither other types for its weights nor revisions",
            fix="bitttt convert --table=int8 for smaller tables, and --step for an earlier step",
        )
    if not packed_model.is_packed_model(Path(path)):
        return load_run(path, step)
    config, params, tokenizer, manifest = packed_model.load(Path(path))
    if step not in (None, manifest.step):
        raise ConfigError(f"--step={step}: {path} is packed, and of step {manifest.step}")
    return _of_run(config, params, tokenizer, manifest.step)


def _of_run(run: TrainConfig, params: Any, tokenizer: Tokenizer, step: int | None) -> Model:
    description = "packed" if step is None else f"step {step}"
    return Model(run, params, tokenizer, description, step=step)


@functools.cache  # tracing the model takes longer than restoring a small one
def abstract_params(config: ModelConfig) -> Any:
    """Shapes and types of a model's parameters."""
    return jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))


def load_run(path: str | Path, step: int | None = None) -> Model:
    """Loads the parameters of a run, from its newest checkpoint or a given one.

    Works while the run is still training.

    Args:
      path: run directory.
      step: training step of the checkpoint.

    Raises:
      DataError: no such folder, or it holds no run.
      CheckpointError: no complete checkpoint, or not that one.
    """
    run = open_run(Path(path))
    step = max(run.checkpoint_steps()) if step is None else step
    tokenizer = Tokenizer.load(run.path / TOKENIZER_FILE)
    config = with_vocabulary(load_config(str(run.config_path)), tokenizer.vocab_size)
    with Checkpoints(run.checkpoints_path) as checkpoints:
        target = {"params": abstract_params(config.model)}
        params = checkpoints.restore(target, step, partial=True)["params"]
    return _of_run(config, params, tokenizer, step)


def open_run(path: Path) -> RunDirectory:
    """A run directory with at least one complete checkpoint.

    Raises:
      DataError: no such folder, or it holds no run.
      CheckpointError: no complete checkpoint.
    """
    run = RunDirectory(path)
    if not run.config_path.is_file():
        what = "isn't a run directory: it has no config.json" if path.exists() else "isn't there"
        near = [*path.absolute().parents[:2], *(sorted(path.iterdir()) if path.is_dir() else [])]
        runs = [f"--model={p}" for p in near if RunDirectory(p).config_path.is_file()]
        fix = " or ".join(runs[:3]) or "--model=DIR with the --workdir of a training run"
        raise DataError(f"{path} {what}", fix=fix)
    if not run.checkpoint_steps():
        raise CheckpointError(
            f"{path} has no complete checkpoint",
            "a run saves at checkpoint.every_steps or every_minutes, and at its end",
            "waiting for it, or Ctrl-C in the training, which saves and stops",
        )
    return run
