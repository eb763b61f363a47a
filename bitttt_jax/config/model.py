"""The network: its shape, its mixers, and which weights are ternary."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from bitttt_jax.config.checks import STRICT, require, require_positive

Mixer = Literal["attention", "ttt_linear", "ttt_mlp"]
Switch = Literal["auto", "on", "off"]

VOCAB_MULTIPLE = 64
"""What `vocab_size` is rounded up to where it follows the tokenizer."""


@dataclasses.dataclass(frozen=True)
class TernaryConfig:
    """Which linear layers have ternary weights and how their product is computed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    mixer: bool = True
    """Ternary projections in attention and TTT mixers; False keeps them in float."""
    mlp: bool = True
    """Ternary projections in the MLP; False keeps them in float."""
    activations: bool = True
    """Quantise the inputs of ternary layers to 8 bits per token; False leaves them in float."""
    path: Literal["fake_quant", "int8"] = "int8"
    """Forward product: `int8` multiplies integers exactly, `fake_quant` dequantised floats."""
    inner_norm: bool = False
    """RMSNorm inside every ternary layer instead of before blocks (2024 BitNet b1.58 recipe)."""
    outer_norm: bool = False
    """With `inner_norm`: keep the norms before blocks too, as transformers' `use_rms_norm` does."""
    inner_norm_eps: float = 0.0
    """Added to the mean square in the norms of `inner_norm`; 0 means model.norm_eps."""
    warmup_steps: int = 0
    """Steps over which quantisation fades in from float to ternary; 0 starts ternary."""

    def __post_init__(self) -> None:
        require(
            self.activations or self.path == "fake_quant",
            "model.ternary.activations=False needs model.ternary.path=fake_quant: "
            "the int8 product has integer inputs",
        )
        require(
            self.warmup_steps == 0 or self.path == "fake_quant",
            "model.ternary.warmup_steps > 0 needs model.ternary.path=fake_quant: "
            "half-quantised values aren't integers",
        )
        require(
            self.inner_norm or not self.outer_norm,
            "model.ternary.outer_norm=True needs model.ternary.inner_norm=True",
        )


@dataclasses.dataclass(frozen=True)
class TTTConfig:
    """The test-time-training mixers (`ttt_linear`, `ttt_mlp`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    mini_batch: int = 16
    """Tokens whose inner gradients are taken at the same fast weights."""
    form: Literal["dual", "primal"] = "dual"
    """`dual` computes a mini-batch in closed form, `primal` calls jax.grad per token (slow)."""
    implementation: Literal["auto", "xla", "cpu", "pallas_tpu"] = "auto"
    """What computes the dual form and convolutions in training: XLA, native CPU code (`cpu`), or a
    Pallas kernel for TPUs (of the dual form only; slow elsewhere); `auto` takes what fits."""
    backbone: Literal["mamba", "transformer"] = "mamba"
    """`mamba`: shared query/key projection, short convolutions, gate; `transformer`: none."""
    gate: Switch = "auto"
    """Whether the mixer's output is gated; `auto` as the backbone has it."""
    share_qk: Switch = "auto"
    """Whether queries and keys are convolutions of one projection; `auto`: as the backbone has."""
    pre_conv: Switch = "auto"
    """Whether a residual convolution comes before the mixer; `auto` as the backbone has it."""
    linear_lr: float = 1.0
    """Base inner learning rate of `ttt_linear`."""
    mlp_lr: float = 0.1
    """Base inner learning rate of `ttt_mlp`."""
    mlp_lr_start: float = 0.01
    """Inner learning rate of `ttt_mlp` at the first training step."""
    mlp_lr_warmup: float = 0.1
    """Share of the training steps over which `mlp_lr_start` rises to `mlp_lr`."""
    mlp_ratio: int = 4
    """Hidden width of the inner MLP in head widths."""
    conv_width: int = 4
    """Taps of the causal depthwise convolutions."""
    rope_theta: float = 10_000.0
    """RoPE base inside a mini-batch."""
    remat_group: int = 4
    """Mini-batches between two saved fast weights in training; 0 saves all, recomputes nothing."""

    def __post_init__(self) -> None:
        require_positive(self, "model.ttt", "mini_batch", "mlp_ratio", "conv_width")
        require(self.remat_group >= 0, "model.ttt.remat_group must not be negative")

    @property
    def has_gate(self) -> bool:
        """Whether the mixer's output is gated."""
        return self._has(self.gate)

    @property
    def shares_qk(self) -> bool:
        """Whether queries and keys are convolutions of one projection."""
        return self._has(self.share_qk)

    @property
    def has_pre_conv(self) -> bool:
        """Whether a residual convolution comes before the mixer."""
        return self._has(self.pre_conv)

    def _has(self, switch: Switch) -> bool:
        return self.backbone == "mamba" if switch == "auto" else switch == "on"

    @property
    def convolution(self) -> Literal["auto", "xla", "cpu"]:
        """What computes convolutions: there is no Pallas kernel for them."""
        return "xla" if self.implementation == "pallas_tpu" else self.implementation


@dataclasses.dataclass(frozen=True)
class RopeScalingConfig:
    """How RoPE's angles are stretched for contexts longer than those of the first training."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: Literal["none", "linear", "llama3"] = "none"
    """`linear` divides all frequencies, `llama3` the low ones only (Llama 3.1)."""
    factor: float = 1.0
    """What frequencies are divided by."""
    low_freq_factor: float = 1.0
    """`llama3`: frequencies with fewer turns than this in `original_context` are divided."""
    high_freq_factor: float = 4.0
    """`llama3`: those with more turns than this are left; in between it goes over smoothly."""
    original_context: int = 8192
    """`llama3`: context of the first training, in tokens."""

    def __post_init__(self) -> None:
        require_positive(
            self, "model.rope_scaling", "factor", "low_freq_factor", "original_context"
        )
        require(
            self.high_freq_factor > self.low_freq_factor,
            "model.rope_scaling.high_freq_factor must be above low_freq_factor",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder with a choice of token mixers."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    vocab_size: int = 0
    """Rows of the embedding; 0 takes the tokenizer's size, rounded up to a multiple of 64."""
    dim: int = 256
    """Width of the residual stream."""
    num_layers: int = 4
    """Number of blocks."""
    num_heads: int = 4
    """Query heads of attention, and heads of the TTT mixers."""
    num_kv_heads: int = 0
    """Key/value heads of attention (grouped-query); 0 means num_heads."""
    head_dim: int = 0
    """Width of a head; 0 means dim / num_heads."""
    mlp_dim: int = 688
    """Hidden width of the gated MLP."""
    mlp: Literal["swiglu", "relu2_glu"] = "swiglu"
    """Gate of the MLP: SiLU, or squared ReLU as in BitNet b1.58 2B4T."""
    mixers: tuple[Mixer, ...] = ("attention",)
    """Mixers of consecutive blocks, repeated over the depth."""
    norm_placement: Literal["llama", "subln"] = "llama"
    """`llama`: norms before mixer and MLP; `subln`: also before their output projections."""
    norm_eps: float = 1e-5
    """Added to the mean square in RMSNorm."""
    rope_theta: float = 10_000.0
    """RoPE base of attention."""
    rope_scaling: RopeScalingConfig = RopeScalingConfig()
    """Stretching of attention's RoPE."""
    qkv_bias: bool = False
    """Biases in attention's query, key and value projections (Qwen2)."""
    window: int = 0
    """Attention sees this many latest tokens, itself included; 0 means all."""
    tie_embeddings: bool = True
    """Use the embedding as output head."""
    init_std: float = 0.02
    """Standard deviation of the initial weights."""
    compute_dtype: Literal["float32", "bfloat16"] = "bfloat16"
    """Type of activations and float products; parameters and fast weights stay float32."""
    remat: Literal["none", "dots", "full"] = "none"
    """What the backward pass recomputes: nothing, all but matrix products, or whole blocks."""
    scan_unroll: int = 1
    """Repetitions of `mixers` per iteration of the scan over the depth."""
    ternary: TernaryConfig = TernaryConfig()
    """Ternary layers."""
    ttt: TTTConfig = TTTConfig()
    """Test-time-training mixers."""

    def __post_init__(self) -> None:
        require_positive(self, "model", "dim", "num_layers", "num_heads", "mlp_dim", "scan_unroll")
        require(len(self.mixers) > 0, "model.mixers must name at least one mixer")
        require(
            self.num_layers % len(self.mixers) == 0,
            f"model.num_layers={self.num_layers} must be a multiple of the length of "
            f"model.mixers={','.join(self.mixers)} ({len(self.mixers)})",
        )
        require(
            self.head_dim > 0 or self.dim % self.num_heads == 0,
            f"model.dim={self.dim} must be a multiple of model.num_heads={self.num_heads}, "
            "or model.head_dim be given",
        )
        require(
            self.num_heads % self.kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of "
            f"model.num_kv_heads={self.kv_heads}",
        )
        require(
            self.width_per_head % 2 == 0,
            f"the head width {self.width_per_head} (model.head_dim, or model.dim / "
            "model.num_heads) must be even for RoPE",
        )
        require(
            not (self.ternary.inner_norm and self.norm_placement == "subln"),
            "model.ternary.inner_norm=True already normalises before every projection: "
            "use model.norm_placement=llama with it",
        )

    @property
    def kv_heads(self) -> int:
        """Key/value heads in effect."""
        return self.num_kv_heads or self.num_heads

    @property
    def width_per_head(self) -> int:
        """Head width in effect."""
        return self.head_dim or self.dim // self.num_heads

    @property
    def num_groups(self) -> int:
        """Repetitions of the mixer pattern over the depth."""
        return self.num_layers // len(self.mixers)

    @property
    def uses_ttt(self) -> bool:
        """Whether any block carries fast weights."""
        return any(mixer.startswith("ttt") for mixer in self.mixers)
