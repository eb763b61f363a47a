"""Names of the tensors in Hugging Face's Llama-like models, by our parameters' names."""

from __future__ import annotations

from bitttt_jax.config import ModelConfig

FINAL_NORM = "model.norm.weight"
NORMS = {"mixer_norm": "input_layernorm", "mlp_norm": "post_attention_layernorm"}
PROJECTIONS = {
    "mixer": {
        "query": "self_attn.q_proj",
        "key": "self_attn.k_proj",
        "value": "self_attn.v_proj",
        "output": "self_attn.o_proj",
    },
    "mlp": {"gate": "mlp.gate_proj", "up": "mlp.up_proj", "down": "mlp.down_proj"},
}
SUB_NORMS = {"mixer": "self_attn.attn_sub_norm", "mlp": "mlp.ffn_sub_norm"}
INNER_NORM = "rms_norm"
"""Of a projection."""
BIASED = ("query", "key", "value")
"""Projections that have biases where any have."""


def layer(index: int) -> str:
    """What the names of a block's tensors start with."""
    return f"model.layers.{index}."


def widths(config: ModelConfig) -> dict[str, tuple[int, int]]:
    """Outputs and inputs of the projections, by our names."""
    D, F, K = config.dim, config.mlp_dim, config.width_per_head
    heads, kv_heads = config.num_heads * K, config.kv_heads * K
    return {
        "query": (heads, D),
        "key": (kv_heads, D),
        "value": (kv_heads, D),
        "output": (D, heads),
        "gate": (F, D),
        "up": (F, D),
        "down": (D, F),
    }
