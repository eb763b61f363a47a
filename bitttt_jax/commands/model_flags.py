"""The flags by which commands are told what model to run, and how to choose its tokens."""

from __future__ import annotations

import dataclasses
from typing import TYPE_CHECKING, Literal

import tyro

from bitttt_jax.errors import ConfigError

if TYPE_CHECKING:
    from bitttt_jax.inference.model import Model
    from bitttt_jax.inference.sampling import SamplingConfig


@dataclasses.dataclass(frozen=True, kw_only=True)
class ModelFlags:
    """Which model, and where it runs."""

    model: str
    """Run directory, whose newest checkpoint is used, also while it trains; packed model; Hugging
    Face folder, or the name of one on the Hub; or GGUF file."""
    step: int | None = None
    """Training step of a run's checkpoint; the newest one by default."""
    weights: Literal["bfloat16", "int8"] = "bfloat16"
    """How weights that aren't ternary are kept, where another program made the model: exactly, or
    as int8 rows, which are read twice as fast."""
    revision: str = ""
    """Branch, tag or commit of a model on the Hub."""
    i2_s_layout: Literal["x86", "arm"] = "x86"
    """Order of the codes in a GGUF file's I2_S tensors: `arm` is that of files that bitnet.cpp's
    quantiser wrote on ARM processors, which nothing in them tells; published ones are `x86`."""
    device: str = ""
    """Device that computes: `cpu`, `gpu`, `gpu:1`, `tpu` …; JAX's choice by default."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class SamplingFlags:
    """How tokens are chosen."""

    max_tokens: int = 128
    """Most tokens to generate."""
    temperature: float = 0.8
    """Divides the logits; 0 always takes the likeliest token."""
    top_k: int = 0
    """Only the k likeliest tokens are possible; 0 for all."""
    top_p: float = 0.95
    """Only the fewest likeliest tokens that together reach this probability are possible."""
    min_p: float = 0.0
    """Only tokens at least this many times as likely as the likeliest are possible."""
    repetition_penalty: float = 1.0
    """Makes tokens that were there already less likely, above 1; 1 leaves them as they are."""
    stop: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """Text that ends a continuation, and isn't part of it; may be given several times."""
    seed: int = 0
    """Seed of the draws: the same seed gives the same text."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class EngineFlags:
    """How much a model keeps of what it reads."""

    context: int = 0
    """Most tokens of a prompt and its continuation; 0 for what the model was made for."""
    cache: Literal["", "bfloat16", "int8"] = ""
    """Type of attention's keys and values; that of the activations by default. `int8` takes half
    the memory, at an error of about 1 % in each."""


def load_model(flags: ModelFlags) -> Model:
    """Loads the model on its device.

    Raises:
      BittttError: no such device or model, or it is damaged.
    """
    from bitttt_jax.distributed.devices import use_device
    from bitttt_jax.distributed.processes import use_compile_cache

    use_device(flags.device)
    use_compile_cache()
    from bitttt_jax.inference.load import load

    return load(
        flags.model,
        step=flags.step,
        weights=flags.weights,
        revision=flags.revision or None,
        i2_s_layout=flags.i2_s_layout,
    )


def check_context(flags: EngineFlags) -> None:
    """Refuses contexts that are none.

    Raises:
      ConfigError: negative, or too small for a token and the next.
    """
    if flags.context < 0 or flags.context == 1:
        raise ConfigError(f"--context must be at least 2, or 0, got {flags.context}")


def check_sampling(flags: SamplingFlags) -> None:
    """Refuses what can be refused before anything is loaded.

    Raises:
      ConfigError: a value that no model can do anything with.
    """
    if flags.max_tokens < 1:
        raise ConfigError(f"--max_tokens must be at least 1, got {flags.max_tokens}")
    if not 0 <= flags.seed < 2**32:
        raise ConfigError(f"--seed must be in [0, 2**32), got {flags.seed}")
    if "" in flags.stop:
        raise ConfigError("--stop= would end every continuation before it begins")


def sampling_config(flags: SamplingFlags) -> SamplingConfig:
    """The flags as the sampler takes them.

    Raises:
      ConfigError: a value out of its range.
    """
    from bitttt_jax.inference.sampling import SamplingConfig

    names = [field.name for field in dataclasses.fields(SamplingConfig)]
    return SamplingConfig(**{name: getattr(flags, name) for name in names})
