"""The transformers class that computes exactly one of our models, as its config.json."""

from __future__ import annotations

from typing import Any, Literal

from bitttt_jax.config import ModelConfig
from bitttt_jax.errors import ConfigError
from bitttt_jax.interop import dense, huggingface_names, ternary_rows
from bitttt_jax.interop.export_tensors import FloatType
from bitttt_jax.interop.huggingface_config import (
    FAMILIES,
    MIXER_PROJECTIONS,
    MLP_PROJECTIONS,
    Packing,
)

Form = Literal["hf", "hf-packed"]
"""`hf` has floats, from which ternary weights are made when a model is loaded; `hf-packed` has them
packed at 2 bits."""

_ACTIVATIONS = {"swiglu": "silu", "relu2_glu": "relu2"}


def describe(
    config: ModelConfig, form: Form, dtype: FloatType, context: int | None
) -> tuple[dict[str, Any], Packing]:
    """The config.json of a model, and how its ternary weights are written.

    Args:
      config: the model's.
      form: of its ternary weights.
      dtype: of the others.
      context: most tokens that it was made for.

    Raises:
      ConfigError: no class computes this model, or the form can't hold it; it names the layer.
    """
    is_ternary = config.ternary.mixer or config.ternary.mlp
    if form == "hf-packed":
        _check_packable(config, is_ternary)
    shared: dict[str, Any] = {"torch_dtype": dtype, "dtype": dtype}
    if context:
        shared["max_position_embeddings"] = context
    if config.uses_ttt:
        return dense.to_fields(config) | shared, "online" if is_ternary else "none"
    kind = _family(config)
    family = FAMILIES[kind]
    if family.window:
        shared["sliding_window"] = config.window or None
    if kind == "qwen2":
        shared |= {"use_sliding_window": config.window > 0, "max_window_layers": 0}
    packing: Packing = "none"
    if is_ternary:
        packing = "online"
        if form == "hf-packed":
            # What the published models of each kind have.
            packing = "multiply" if family.subln else "divide"
        shared["quantization_config"] = _quantization(config, packing)
    return _shape_fields(config, kind) | shared, packing


def _shape_fields(config: ModelConfig, kind: str) -> dict[str, Any]:
    rope: dict[str, Any] = {"rope_type": "default", "rope_theta": config.rope_theta}
    scaling = config.rope_scaling
    if scaling.kind != "none":
        rope |= {"rope_type": scaling.kind, "factor": scaling.factor}
    if scaling.kind == "llama3":
        rope |= {
            "low_freq_factor": scaling.low_freq_factor,
            "high_freq_factor": scaling.high_freq_factor,
            "original_max_position_embeddings": scaling.original_context,
        }
    old = {name: value for name, value in rope.items() if name != "rope_theta"}
    return {
        "architectures": [FAMILIES[kind].architecture],
        "model_type": kind,
        "vocab_size": config.vocab_size,
        "hidden_size": config.dim,
        "intermediate_size": config.mlp_dim,
        "num_hidden_layers": config.num_layers,
        "num_attention_heads": config.num_heads,
        "num_key_value_heads": config.kv_heads,
        "head_dim": config.width_per_head,
        "hidden_act": _ACTIVATIONS[config.mlp],
        "rms_norm_eps": config.norm_eps,
        "tie_word_embeddings": config.tie_embeddings,
        # Versions 5 and 4 of transformers.
        "rope_parameters": rope,
        "rope_theta": config.rope_theta,
        "rope_scaling": None if scaling.kind == "none" else old,
    }


def _quantization(config: ModelConfig, packing: Packing) -> dict[str, Any]:
    kept = [] if config.ternary.mixer else list(MIXER_PROJECTIONS)
    kept += [] if config.ternary.mlp else list(MLP_PROJECTIONS)
    how: dict[str, Any] = {
        "quant_method": "bitnet",
        "linear_class": "bitlinear" if packing == "divide" else "autobitlinear",
        "quantization_mode": "online" if packing == "online" else "offline",
        "modules_to_not_convert": ["lm_head", *kept],
        "use_rms_norm": config.ternary.inner_norm,
    }
    if config.ternary.inner_norm:
        how["rms_norm_eps"] = config.ternary.inner_norm_eps or config.norm_eps
    return how


def _family(config: ModelConfig) -> str:
    """The model type whose class computes a model of attention."""
    ternary, first = config.ternary, huggingface_names.layer(0)
    if (ternary.mixer or ternary.mlp) and not ternary.activations:
        raise _refusal(f"{first}self_attn.q_proj", "float inputs to ternary weights")
    if ternary.inner_norm and not ternary.outer_norm:
        raise _refusal(f"{first}input_layernorm", "blocks without norms in front of their parts")
    if config.norm_placement == "subln":
        if config.qkv_bias:
            raise _refusal(f"{first}self_attn.q_proj", "norms before output projections and biases")
        if config.window:
            raise _refusal(f"{first}self_attn", "norms before output projections and a window")
        if config.num_heads * config.width_per_head != config.dim:
            raise _refusal(
                f"{first}self_attn.attn_sub_norm", "heads whose widths don't add up to the model's"
            )
        return "bitnet"
    if config.qkv_bias:
        return "qwen2"
    if config.window:
        return "mistral"
    if config.dim % config.num_heads:
        raise _refusal(f"{first}self_attn", "a width that isn't a multiple of the number of heads")
    return "llama"


def _check_packable(config: ModelConfig, is_ternary: bool) -> None:
    if not is_ternary:
        raise ConfigError("the model has no ternary weights to pack", fix="--to=hf")
    for index in range(config.num_layers):
        mixer = config.mixers[index % len(config.mixers)]
        if mixer != "attention":
            raise ConfigError(
                f"layer {index} is {mixer}, which no packed format of Hugging Face can hold",
                fix="--to=hf (dense, read by this program) or --to=packed",
            )
    for name, (outputs, _) in huggingface_names.widths(config).items():
        is_mlp = name in huggingface_names.PROJECTIONS["mlp"]
        packs = config.ternary.mlp if is_mlp else config.ternary.mixer
        if packs and outputs % ternary_rows.OUTPUTS_TOGETHER:
            part = huggingface_names.PROJECTIONS["mlp" if is_mlp else "mixer"][name]
            raise ConfigError(
                f"{huggingface_names.layer(0)}{part} has {outputs} outputs",
                f"the packed format holds {ternary_rows.OUTPUTS_TOGETHER} in a byte",
                "--to=hf or --to=packed",
            )


def _refusal(layer: str, what: str) -> ConfigError:
    return ConfigError(
        f"no model of transformers can hold {layer}", f"it has none with {what}", "--to=packed"
    )
