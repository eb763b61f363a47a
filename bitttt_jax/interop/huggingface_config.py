"""The config.json of Llama-like Hugging Face models, as a `ModelConfig`.

What isn't given has the value that transformers takes for it. What would change the function and
isn't known here is refused by its name; which tensors there are is checked against the result.
"""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from bitttt_jax.config import ModelConfig, RopeScalingConfig, TernaryConfig
from bitttt_jax.errors import ConfigError, DataError
from bitttt_jax.interop.fields import Fields

Packing = Literal["none", "multiply", "divide", "online"]
"""Ternary weights: none; packed, with a scale by which they are multiplied or divided; or made
ternary when the model is loaded, at the scale of their mean magnitude."""


@dataclasses.dataclass(frozen=True)
class Architecture:
    """What a config.json says."""

    config: ModelConfig
    packing: Packing
    context: int
    """Most tokens that the model was made for."""


@dataclasses.dataclass(frozen=True)
class _Family:
    """What differs between the model types."""

    architecture: str
    activation: str = "silu"
    heads: int = 32
    kv_heads: int = 0
    context: int = 2048
    eps: float = 1e-6
    theta: float = 10_000.0
    bias: bool = False
    window: int = 0
    subln: bool = False


# The defaults of transformers, by model_type.
FAMILIES = {
    "llama": _Family("LlamaForCausalLM"),
    "qwen2": _Family("Qwen2ForCausalLM", context=32768, bias=True, window=4096),
    "mistral": _Family("MistralForCausalLM", kv_heads=8, context=4096 * 32, window=4096),
    "bitnet": _Family(
        "BitNetForCausalLM", "relu2", 20, kv_heads=5, eps=1e-5, theta=500_000.0, subln=True
    ),
}
ACTIVATIONS: dict[str, Literal["swiglu", "relu2_glu"]] = {
    "silu": "swiglu",
    "swish": "swiglu",
    "relu2": "relu2_glu",
}
MIXER_PROJECTIONS = ("q_proj", "k_proj", "v_proj", "o_proj")
MLP_PROJECTIONS = ("gate_proj", "up_proj", "down_proj")

# Fields that change the function, with the values at which they don't.
_NEUTRAL: dict[str, tuple[Any, ...]] = {
    "attention_bias": (False,),
    "mlp_bias": (False,),
    "qkv_bias": (False, True),
    "partial_rotary_factor": (1, 1.0),
    "num_experts": (0, 1),
    "num_local_experts": (0, 1),
    "n_routed_experts": (0,),
    "use_qk_norm": (False,),
    "qk_layernorm": (False,),
    "qk_norm": (False,),
    "attn_logit_softcapping": (),
    "final_logit_softcapping": (),
    "logit_scale": (1, 1.0),
    "logits_scaling": (1, 1.0),
    "embedding_multiplier": (1, 1.0),
    "residual_multiplier": (1, 1.0),
    "attention_multiplier": (),
    "query_pre_attn_scalar": (),
    "no_rope_layers": (),
    "attention_chunk_size": (),
    "alibi": (False,),
    "is_encoder_decoder": (False,),
    "add_cross_attention": (False,),
    "weight_bits": (),
}


def read_architecture(values: Fields) -> Architecture:
    """The model that a config.json describes.

    Raises:
      DataError: it isn't of a model type that is known, or has a value that isn't.
    """
    family = FAMILIES[values.text("model_type", among=tuple(FAMILIES))]
    for name in values.texts("architectures") or ():
        if name != family.architecture:
            raise values.fault("architectures", f"this program reads {family.architecture}")
    for name, neutral in _NEUTRAL.items():
        values.refuse(name, neutral, "this program can't compute what that does")
    context = values.integer("max_position_embeddings", family.context)
    ternary, packing = _quantization(values, family)
    layers = values.integer("num_hidden_layers")
    heads = values.integer("num_attention_heads", family.heads)
    scaling, theta = _rope(values, family, context)
    activation = values.text("hidden_act", family.activation, tuple(ACTIVATIONS))
    try:
        config = ModelConfig(
            vocab_size=values.integer("vocab_size"),
            dim=values.integer("hidden_size"),
            num_layers=layers,
            num_heads=heads,
            num_kv_heads=values.integer("num_key_value_heads", family.kv_heads or heads),
            head_dim=values.integer("head_dim", 0, low=0),
            mlp_dim=values.integer("intermediate_size"),
            mlp=ACTIVATIONS[activation],
            norm_placement="subln" if family.subln else "llama",
            norm_eps=values.number("rms_norm_eps", family.eps),
            rope_theta=theta,
            rope_scaling=scaling,
            qkv_bias=family.bias,
            window=_window(values, family, layers),
            tie_embeddings=values.flag("tie_word_embeddings", False),
            ternary=ternary,
        )
    except ConfigError as error:
        raise DataError(f"{values.path} describes no model", error.what) from None
    return Architecture(config, packing, context)


def _window(values: Fields, family: _Family, layers: int) -> int:
    """Tokens that attention sees; 0 for all."""
    if not family.window:
        values.refuse("sliding_window", (), "models of this type have none in transformers")
        values.refuse("layer_types", (), "layers of this type don't differ in transformers")
        return 0
    if family.architecture == "MistralForCausalLM":
        values.refuse("layer_types", (), "this program has the same window in all layers")
        # Null isn't the default here, it means that there is no window.
        given = values.values.get("sliding_window", family.window)
        return 0 if given is None else values.integer("sliding_window", family.window)
    kinds = values.texts("layer_types")
    window = values.integer("sliding_window", family.window)
    if kinds is None:
        first = values.integer("max_window_layers", 28, low=0)
        is_used = values.flag("use_sliding_window", False) and first < layers
        kinds = ["full_attention"] * min(first, layers) if is_used else []
        kinds += ["sliding_attention" if is_used else "full_attention"] * (layers - len(kinds))
    if set(kinds) == {"full_attention"}:
        return 0
    if set(kinds) == {"sliding_attention"} and values.flag("use_sliding_window", False):
        return window
    name = "layer_types" if "layer_types" in values else "max_window_layers"
    raise values.fault(name, "this program has the same window in all layers")


def _rope(values: Fields, family: _Family, context: int) -> tuple[RopeScalingConfig, float]:
    """How angles are stretched, and their base; both spellings of transformers."""
    given = values.object("rope_parameters") or values.object("rope_scaling")
    default = values.number("rope_theta", family.theta, low=1e-6)
    if given is None:
        return RopeScalingConfig(), default
    given.refuse("partial_rotary_factor", (1, 1.0), "this program turns all channels of a head")
    theta = given.number("rope_theta", default, low=1e-6)
    name = "rope_type" if "rope_type" in given else "type"
    kind = given.text(name, "default", ("default", "linear", "llama3"))
    if kind == "default":
        return RopeScalingConfig(), theta
    factor = given.number("factor", low=1e-6)
    if kind == "linear":
        return RopeScalingConfig("linear", factor), theta
    try:
        scaling = RopeScalingConfig(
            "llama3",
            factor,
            given.number("low_freq_factor", low=1e-6),
            given.number("high_freq_factor", low=1e-6),
            given.integer("original_max_position_embeddings", context),
        )
    except ConfigError as error:
        raise given.fault("high_freq_factor", error.what) from None
    return scaling, theta


def _quantization(values: Fields, family: _Family) -> tuple[TernaryConfig, Packing]:
    given = values.object("quantization_config")
    if given is None:
        return TernaryConfig(mixer=False, mlp=False), "none"
    given.text("quant_method", among=("bitnet",))
    kind = given.text("linear_class", "bitlinear", ("bitlinear", "autobitlinear"))
    mode = given.text("quantization_mode", "offline", ("offline", "online"))
    packing: Packing = "divide"
    if kind == "autobitlinear":
        packing = "online" if mode == "online" else "multiply"
        if packing == "multiply" and family.bias:
            why = "with linear_class=autobitlinear transformers would scale the biases too"
            raise given.fault("quantization_mode", why)
    has_norms = given.flag("use_rms_norm", False)
    if has_norms and family.subln:
        raise given.fault("use_rms_norm", f"{family.architecture} has norms of its own there")
    mixer, mlp = _converted(given)
    if not (mixer or mlp):
        return TernaryConfig(mixer=False, mlp=False), "none"
    eps = given.number("rms_norm_eps", 1e-6) if has_norms else 0.0
    ternary = TernaryConfig(
        mixer=mixer, mlp=mlp, inner_norm=has_norms, outer_norm=has_norms, inner_norm_eps=eps
    )
    return ternary, packing


def _converted(given: Fields) -> tuple[bool, bool]:
    """Whether the projections of mixers and of MLPs are ternary."""
    left = given.texts("modules_to_not_convert")
    if left is None:
        return True, True
    name = "modules_to_not_convert"
    if "lm_head" not in left:
        raise given.fault(name, "without lm_head in it transformers makes the output head ternary")
    kept = set(left) - {"lm_head", "model.embed_tokens", "embed_tokens", "model.norm"}
    for projections in (MIXER_PROJECTIONS, MLP_PROJECTIONS):
        if 0 < len(kept & set(projections)) < len(projections):
            raise given.fault(name, f"all or none of {', '.join(projections)} can be ternary here")
    if unknown := kept - {*MIXER_PROJECTIONS, *MLP_PROJECTIONS}:
        raise given.fault(name, f"{min(unknown)!r:.99} is neither the head nor a projection")
    return MIXER_PROJECTIONS[0] not in kept, MLP_PROJECTIONS[0] not in kept
