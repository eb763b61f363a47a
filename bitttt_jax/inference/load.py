"""Loading a trained model from its run directory."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import jax

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.config_loading import load_config, with_vocabulary
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import DataError
from bitttt_jax.models import transformer
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.directory import RunDirectory

TOKENIZER_FILE = "tokenizer.json"


@dataclasses.dataclass(frozen=True)
class LoadedModel:
    """A model that is ready to run."""

    config: TrainConfig
    """Of its run, the vocabulary size filled in."""
    params: Any
    tokenizer: Tokenizer
    step: int
    """Training step of the checkpoint."""


def abstract_params(config: ModelConfig) -> Any:
    """Shapes and types of a model's parameters."""
    return jax.eval_shape(lambda: transformer.init_params(config, jax.random.key(0)))


def load_run(path: str | Path, step: int | None = None) -> LoadedModel:
    """Loads the parameters of a run, from its newest checkpoint or a given one.

    Works while the run is still training.

    Args:
      path: run directory.
      step: training step of the checkpoint.

    Raises:
      DataError: no such folder, or it holds no run.
      CheckpointError: no complete checkpoint, or not that one.
    """
    run = RunDirectory(path)
    if not run.config_path.is_file():
        what = (
            "isn't a run directory: it has no config.json" if run.path.is_dir() else "isn't there"
        )
        raise DataError(f"{path} {what}", fix="--model=DIR with the --workdir of a training run")
    tokenizer = Tokenizer.load(run.path / TOKENIZER_FILE)
    config = with_vocabulary(load_config(str(run.config_path)), tokenizer.vocab_size)
    with Checkpoints(run.checkpoints_path) as checkpoints:
        step = checkpoints.latest_step() if step is None else step
        target = {"params": abstract_params(config.model)}
        params = checkpoints.restore(target, step, partial=True)["params"]
    assert step is not None
    return LoadedModel(config, params, tokenizer, step)
