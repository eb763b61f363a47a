"""Loading a model: a run, packed, or from another program's files."""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any

import jax

from bitttt_jax.config import ModelConfig, TrainConfig
from bitttt_jax.config_loading import load_config, with_vocabulary
from bitttt_jax.data.chat_format import CHAT_TEMPLATE_FILE
from bitttt_jax.data.manifest import TOKENIZER_FILE
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import CheckpointError, ConfigError, DataError
from bitttt_jax.inference import packed_model
from bitttt_jax.inference.model import Model
from bitttt_jax.interop import gguf_model, hub, huggingface
from bitttt_jax.interop.foreign import WeightType
from bitttt_jax.interop.gguf_tensors import I2SLayout
from bitttt_jax.models import transformer
from bitttt_jax.runs.checkpoints import Checkpoints
from bitttt_jax.runs.directory import RunDirectory


def load(
    path: str | Path,
    *,
    step: int | None = None,
    revision: str | None = None,
    weights: WeightType = "bfloat16",
    i2_s_layout: I2SLayout = "x86",
) -> Model:
    """Loads a model, of whichever kind it is.

    Args:
      path: a run directory, a folder of a packed model, a Hugging Face folder, a GGUF file, or
        OWNER/NAME of a model on the Hugging Face Hub, from the local cache or downloaded.
      step: training step of a run's checkpoint; the newest one by default.
      revision: branch, tag or commit of a model on the Hub.
      weights: how another program's weights are kept where they aren't ternary.
      i2_s_layout: order of the codes in a GGUF file's I2_S tensors.

    Raises:
      DataError: there is no such model, its files are damaged, or it can't be run here.
      CheckpointError: no complete checkpoint, or not that one.
      ConfigError: a step of what isn't a run, or a revision of what isn't on the Hub.
    """
    place = Path(path).expanduser()
    if not place.exists() and hub.is_name(str(path)):
        place = hub.find(str(path), revision)
    elif revision is not None:
        raise ConfigError(f"--revision={revision}: {path} isn't a model on the Hub")
    if packed_model.is_packed_model(place):
        return _load_own(place, step, weights)
    if gguf_model.is_model(place):
        found = gguf_model.load(place, weights, i2_s_layout=i2_s_layout)
    elif huggingface.is_model(place):
        found = huggingface.load(place, weights)
    else:
        return _load_own(place, step, weights)
    if step is not None:
        raise ConfigError(f"--step={step}: {path} isn't a training run")
    return Model(
        TrainConfig(name=place.name, model=found.config),
        packed_model.readable(found.params),
        found.tokenizer,
        found.description,
        found.context,
        found.chat_template,
    )


def _load_own(path: Path, step: int | None, weights: WeightType) -> Model:
    """A run, or what was packed of one."""
    if weights != "bfloat16":
        raise ConfigError(
            f"--weights={weights}: {path} was made here, and its weights have their types",
            fix="bitttt convert --table=int8 for a smaller embedding and head",
        )
    if packed_model.is_packed_model(path):
        config, params, tokenizer, manifest = packed_model.load(path)
        if step not in (None, manifest.step):
            raise ConfigError(f"--step={step}: {path} is packed, and of step {manifest.step}")
        description = "packed" if manifest.step is None else f"step {manifest.step}"
        texts = (manifest.context, manifest.chat_template)
        return Model(config, params, tokenizer, description, *texts, manifest.step)
    return load_run(path, step)


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
    template = _chat_template(run.path / CHAT_TEMPLATE_FILE)
    return Model(config, params, tokenizer, f"step {step}", chat_template=template, step=step)


def _chat_template(path: Path) -> str | None:
    """The chat template of a run; None where it was taught no conversations."""
    if not path.is_file():
        return None
    try:
        return path.read_text("utf-8")
    except OSError as error:
        raise DataError(f"{path} can't be read", error.strerror or str(error)) from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path} is no chat template", f"not UTF-8: {error}") from None


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
