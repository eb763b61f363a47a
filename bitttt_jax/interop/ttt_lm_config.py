"""The config.json of the TTT authors' checkpoints, as a `ModelConfig`."""

from __future__ import annotations

from bitttt_jax.config import Mixer, ModelConfig, Switch, TernaryConfig, TTTConfig
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop.fields import Fields

MODEL_TYPE = "ttt"
MLP_RATIO = 4
"""Hidden width of the inner MLP in head widths, which isn't among the settings."""
_MIXERS: dict[str, Mixer] = {"linear": "ttt_linear", "mlp": "ttt_mlp"}


def read_config(values: Fields) -> ModelConfig:
    """The model that a config.json of the authors describes.

    Raises:
      DataError: it lacks a setting, or has one that isn't known.
    """

    def switch(name: str) -> Switch:
        return "on" if values.flag(name, False) else "off"

    rate = values.number("ttt_base_lr", 1.0)
    values.text("hidden_act", "silu", ("silu", "swish"))
    try:
        ttt = TTTConfig(
            mini_batch=values.integer("mini_batch_size", 16),
            gate=switch("use_gate"),
            share_qk=switch("share_qk"),
            pre_conv=switch("pre_conv"),
            linear_lr=rate,
            mlp_lr=rate,
            mlp_ratio=MLP_RATIO,
            conv_width=values.integer("conv_kernel", 4),
            rope_theta=values.number("rope_theta", 10_000.0, low=1e-6),
        )
        return ModelConfig(
            vocab_size=values.integer("vocab_size", 32_000),
            dim=values.integer("hidden_size", 2048),
            num_layers=values.integer("num_hidden_layers", 24),
            num_heads=values.integer("num_attention_heads", 32),
            mlp_dim=values.integer("intermediate_size", 5504),
            mixers=(_MIXERS[values.text("ttt_layer_type", "linear", tuple(_MIXERS))],),
            norm_eps=values.number("rms_norm_eps", 1e-6),
            tie_embeddings=values.flag("tie_word_embeddings", True),
            ternary=TernaryConfig(mixer=False, mlp=False),
            ttt=ttt,
        )
    except ConfigError as error:
        raise DataError(f"{values.path} describes no model", error.what) from None
