"""The configuration schema: frozen dataclasses, one source for flags, JSON, help and forms.

Imports nothing heavy, so that `--help` and launch scripts stay fast. `config_loading` reads
and writes these classes; the string under each field is its help text everywhere.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from bitttt_jax.errors import ConfigError

# Read by pydantic: unknown keys and NaN are errors, attribute docstrings become descriptions.
_STRICT: dict[str, Any] = {
    "extra": "forbid",
    "allow_inf_nan": False,
    "use_attribute_docstrings": True,
}

Mixer = Literal["attention", "ttt_linear", "ttt_mlp"]
Switch = Literal["auto", "on", "off"]


def _require(condition: bool, message: str) -> None:
    if not condition:
        raise ConfigError(message)


def _require_positive(config: Any, prefix: str, *names: str) -> None:
    for name in names:
        value = getattr(config, name)
        _require(value > 0, f"{prefix}.{name} must be positive, got {value}")


@dataclasses.dataclass(frozen=True)
class TernaryConfig:
    """Which linear layers have ternary weights and how their product is computed."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
        _require(
            self.activations or self.path == "fake_quant",
            "model.ternary.activations=False needs model.ternary.path=fake_quant: "
            "the int8 product has integer inputs",
        )
        _require(
            self.warmup_steps == 0 or self.path == "fake_quant",
            "model.ternary.warmup_steps > 0 needs model.ternary.path=fake_quant: "
            "half-quantised values aren't integers",
        )
        _require(
            self.inner_norm or not self.outer_norm,
            "model.ternary.outer_norm=True needs model.ternary.inner_norm=True",
        )


@dataclasses.dataclass(frozen=True)
class TTTConfig:
    """The test-time-training mixers (`ttt_linear`, `ttt_mlp`)."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
        _require_positive(self, "model.ttt", "mini_batch", "mlp_ratio", "conv_width")
        _require(self.remat_group >= 0, "model.ttt.remat_group must not be negative")

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

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
        _require_positive(
            self, "model.rope_scaling", "factor", "low_freq_factor", "original_context"
        )
        _require(
            self.high_freq_factor > self.low_freq_factor,
            "model.rope_scaling.high_freq_factor must be above low_freq_factor",
        )


@dataclasses.dataclass(frozen=True)
class ModelConfig:
    """A Llama-style decoder with a choice of token mixers."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

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
        _require_positive(self, "model", "dim", "num_layers", "num_heads", "mlp_dim", "scan_unroll")
        _require(len(self.mixers) > 0, "model.mixers must name at least one mixer")
        _require(
            self.num_layers % len(self.mixers) == 0,
            f"model.num_layers={self.num_layers} must be a multiple of the length of "
            f"model.mixers={','.join(self.mixers)} ({len(self.mixers)})",
        )
        _require(
            self.head_dim > 0 or self.dim % self.num_heads == 0,
            f"model.dim={self.dim} must be a multiple of model.num_heads={self.num_heads}, "
            "or model.head_dim be given",
        )
        _require(
            self.num_heads % self.kv_heads == 0,
            f"model.num_heads={self.num_heads} must be a multiple of "
            f"model.num_kv_heads={self.kv_heads}",
        )
        _require(
            self.width_per_head % 2 == 0,
            f"the head width {self.width_per_head} (model.head_dim, or model.dim / "
            "model.num_heads) must be even for RoPE",
        )
        _require(
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


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of text or tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    path: str = "python-stdlib"
    """File, folder, or `python-stdlib` (the sources of the running Python's standard library)."""
    kind: Literal["auto", "text", "jsonl", "huggingface", "shards"] = "auto"
    """How to read it; `auto` decides by name and content: *.jsonl, shards, datasets, text."""
    glob: str = "**/*"
    """Files of a folder of text or JSON lines."""
    field: str = "text"
    """Field of a JSON line or dataset row that holds the text."""
    weight: float = 1.0
    """Share of the training tokens relative to the other sources' weights."""

    def __post_init__(self) -> None:
        _require_positive(self, "data.sources", "weight")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    kind: Literal["bytes", "bpe", "file"] = "bytes"
    """`bytes`: one token a byte; `bpe`: trained on the sources; `file`: a tokenizer.json."""
    vocab_size: int = 2048
    """Size of a `bpe` tokenizer, special tokens included."""
    path: str = ""
    """The tokenizer.json of kind `file`."""

    def __post_init__(self) -> None:
        _require(
            (self.kind == "file") == bool(self.path),
            f"data.tokenizer.path={self.path!r} and data.tokenizer.kind={self.kind} disagree: "
            "a path is given exactly with kind=file",
        )
        _require(
            self.kind != "bpe" or self.vocab_size > 257,
            f"data.tokenizer.vocab_size={self.vocab_size} must exceed 257 (256 bytes and the "
            "end-of-document token) with data.tokenizer.kind=bpe",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is cut into batches."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Mixed by weight."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    seq_len: int = 512
    """Tokens of a training row."""
    batch_size: int = 4
    """Rows of a training step, over all hosts and accumulation steps."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by the hash of their bytes."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with unreadable documents: stop with exit code 5, or skip and count them."""

    def __post_init__(self) -> None:
        _require_positive(self, "data", "seq_len", "batch_size")
        _require(len(self.sources) > 0, "data.sources must name at least one source")
        _require(
            0 <= self.validation_fraction < 1,
            f"data.validation_fraction must be in [0, 1), got {self.validation_fraction}",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedules and the guards around the update."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: Literal["adamw", "muon"] = "adamw"
    """`muon` orthogonalises the updates of hidden matrices and uses AdamW for the rest."""
    lr: float = 1.5e-3
    """Peak learning rate."""
    schedule: Literal["cosine", "wsd", "two_stage", "constant"] = "cosine"
    """Shape after warm-up; `two_stage` drops rate and weight decay half-way (BitNet b1.58)."""
    warmup_steps: int = 100
    """Steps of linear rise from 0."""
    final_lr_ratio: float = 0.1
    """Last learning rate relative to `lr`; not used by `constant`."""
    decay_fraction: float = 0.2
    """Share of the steps in which `wsd` decays, at the end."""
    stage2_lr_ratio: float = 0.6667
    """Start of the second line of `two_stage` relative to `lr`."""
    beta1: float = 0.9
    """Decay of the first moment."""
    beta2: float = 0.95
    """Decay of the second moment."""
    eps: float = 1e-8
    """Added to the root of the second moment."""
    weight_decay: float = 0.1
    """Decoupled weight decay of matrices; vectors and fast-weight initial values have none."""
    clip_norm: float = 1.0
    """Largest global gradient norm; 0 turns clipping off."""
    accumulation: int = 1
    """Parts in which a batch is run one after the other, to save memory."""
    max_skipped: int = 10
    """Updates skipped in a row for non-finite values before the run stops with exit code 4."""
    z_loss: float = 0.0
    """Weight of the squared log-normaliser of the output distribution."""
    loss_chunk: int = 2048
    """Tokens whose logits exist at once."""

    def __post_init__(self) -> None:
        _require_positive(self, "optim", "lr", "accumulation", "max_skipped", "loss_chunk")
        _require(self.warmup_steps >= 0, "optim.warmup_steps must not be negative")


BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the rows of a batch lie."""
TENSOR_AXIS = "tensor"
"""Mesh axis over which heads and hidden widths lie."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh axes; their product is the number of devices."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    data: int = -1
    """Copies of the parameters, each with its part of the batch; -1 takes the devices left over."""
    fsdp: int = 1
    """Devices over which parameters, optimizer state and batch are sharded together."""
    tensor: int = 1
    """Devices over which heads and hidden widths are sharded."""

    def __post_init__(self) -> None:
        _require(self.data == -1 or self.data > 0, "mesh.data must be positive, or -1")
        _require_positive(self, "mesh", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which ones are kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    every_steps: int = 500
    """Steps between checkpoints; 0 leaves it to `every_minutes`."""
    every_minutes: float = 15.0
    """Minutes between checkpoints when steps are slow; 0 leaves it to `every_steps`."""
    keep_last: int = 2
    """Newest checkpoints kept."""
    keep_best: int = 1
    """Checkpoints with the lowest validation loss kept."""
    keep_every_steps: int = 0
    """Checkpoints at multiples of this step are kept for good; 0 keeps none."""

    def __post_init__(self) -> None:
        _require_positive(self, "checkpoint", "keep_last")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation during training."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    every_steps: int = 250
    """Steps between validations; 0 validates only at the end."""
    batches: int = 16
    """Batches of a validation during the run, always the same; the last validation reads all."""
    sample_prompt: str = ""
    """Text that the model continues after each validation; empty for none."""
    sample_tokens: int = 128
    """Length of that continuation."""


@dataclasses.dataclass(frozen=True)
class LogConfig:
    """What is recorded, and how often."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    every_steps: int = 10
    """Steps between rows of metrics.jsonl and TensorBoard scalars."""
    health_every_steps: int = 100
    """Steps between ternary and TTT health reports; 0 turns them off."""
    tensorboard: bool = True
    """Write TensorBoard event files."""

    def __post_init__(self) -> None:
        _require_positive(self, "log", "every_steps")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = _STRICT

    name: str = "custom"
    """Shown in banners and file names."""
    seed: int = 0
    """Seed of the initial weights and of the data order."""
    steps: int = 1000
    """Optimizer steps."""
    max_minutes: float = 0.0
    """Save and stop with exit code 42 after this long, to be resumed; 0 means no limit."""
    model: ModelConfig = ModelConfig()
    """The network."""
    data: DataConfig = DataConfig()
    """Text, tokens and batches."""
    optim: OptimConfig = OptimConfig()
    """Optimizer and schedules."""
    mesh: MeshConfig = MeshConfig()
    """Devices."""
    checkpoint: CheckpointConfig = CheckpointConfig()
    """Checkpoints."""
    eval: EvalConfig = EvalConfig()
    """Validation."""
    log: LogConfig = LogConfig()
    """Metrics."""

    def __post_init__(self) -> None:
        _require_positive(self, "config", "steps")
        _require(
            self.data.batch_size % self.optim.accumulation == 0,
            f"data.batch_size={self.data.batch_size} must be a multiple of "
            f"optim.accumulation={self.optim.accumulation}",
        )
        _require(
            self.optim.warmup_steps <= self.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} exceeds steps={self.steps}",
        )
        _require(
            not self.model.uses_ttt or self.data.seq_len % self.model.ttt.mini_batch == 0,
            f"data.seq_len={self.data.seq_len} must be a multiple of "
            f"model.ttt.mini_batch={self.model.ttt.mini_batch}",
        )
