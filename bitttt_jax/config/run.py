"""A training run: text, optimizer, devices, checkpoints, and the network that is trained."""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar, Literal

from bitttt_jax.config.checks import STRICT, require, require_positive
from bitttt_jax.config.model import ModelConfig


@dataclasses.dataclass(frozen=True)
class SourceConfig:
    """One source of text or tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    path: str = "python-stdlib"
    """File, folder, or `python-stdlib` (the sources of the running Python's standard library)."""
    kind: Literal["auto", "text", "jsonl", "messages", "huggingface", "shards"] = "auto"
    """How to read it; `auto` decides by name and content: shards, datasets, JSON with conversations
    (`messages`), *.jsonl, text."""
    glob: str = "**/*"
    """Files of a folder of text or JSON."""
    field: str = "text"
    """Field of a JSON line or dataset row that holds the text."""
    weight: float = 1.0
    """Share of the training tokens relative to the other sources' weights."""

    def __post_init__(self) -> None:
        require_positive(self, "data.sources", "weight")


@dataclasses.dataclass(frozen=True)
class TokenizerConfig:
    """How text becomes tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    kind: Literal["bytes", "bpe", "file"] = "bytes"
    """`bytes`: one token a byte; `bpe`: trained on the sources; `file`: a tokenizer.json."""
    vocab_size: int = 2048
    """Size of a `bpe` tokenizer, special tokens included."""
    path: str = ""
    """The tokenizer.json of kind `file`."""

    def __post_init__(self) -> None:
        require(
            (self.kind == "file") == bool(self.path),
            f"data.tokenizer.path={self.path!r} and data.tokenizer.kind={self.kind} disagree: "
            "a path is given exactly with kind=file",
        )
        require(
            self.kind != "bpe" or self.vocab_size > 257,
            f"data.tokenizer.vocab_size={self.vocab_size} must exceed 257 (256 bytes and the "
            "end-of-document token) with data.tokenizer.kind=bpe",
        )


@dataclasses.dataclass(frozen=True)
class CleanConfig:
    """What is changed in documents, and which are left out, before they become tokens."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    unicode: bool = False
    """Compose characters that can be written in several ways (NFC)."""
    control: bool = False
    """Drop control characters but line ends and tabs, and write every line end as one newline."""
    whitespace: bool = False
    """Drop spaces at the ends of lines, and all but one of several blank lines."""
    duplicates: bool = False
    """Leave out documents that are equal to an earlier one, of any source."""
    min_characters: int = 0
    """Leave out documents with fewer characters."""
    max_repeated_lines: float = 1.0
    """Leave out documents of whose lines more than this share repeat an earlier one."""

    def __post_init__(self) -> None:
        require(
            self.min_characters >= 0,
            f"data.clean.min_characters must not be negative, got {self.min_characters}",
        )
        require(
            0 <= self.max_repeated_lines <= 1,
            f"data.clean.max_repeated_lines must be in [0, 1], got {self.max_repeated_lines}",
        )


@dataclasses.dataclass(frozen=True)
class DataConfig:
    """What is read, and how it is cut into batches."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    sources: tuple[SourceConfig, ...] = (SourceConfig(),)
    """Mixed by weight."""
    tokenizer: TokenizerConfig = TokenizerConfig()
    """How text becomes tokens."""
    clean: CleanConfig = CleanConfig()
    """What is changed and left out; nothing by default."""
    chat_template: str = ""
    """How conversations become text: `roles`, `chatml`, or a file of Jinja; empty for `roles`, or
    what the tokenizer knows, where a source holds conversations."""
    seq_len: int = 512
    """Tokens of a training row."""
    batch_size: int = 4
    """Rows of a training step, over all hosts and accumulation steps."""
    validation_fraction: float = 0.05
    """Share of the documents held out, chosen by the hash of their bytes."""
    on_error: Literal["fail", "skip"] = "fail"
    """What to do with unreadable documents: stop with exit code 5, or skip and count them."""

    def __post_init__(self) -> None:
        require_positive(self, "data", "seq_len", "batch_size")
        require(len(self.sources) > 0, "data.sources must name at least one source")
        require(
            0 <= self.validation_fraction < 1,
            f"data.validation_fraction must be in [0, 1), got {self.validation_fraction}",
        )


@dataclasses.dataclass(frozen=True)
class OptimConfig:
    """Optimizer, schedules and the guards around the update."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

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
        require_positive(self, "optim", "lr", "accumulation", "max_skipped", "loss_chunk")
        require(self.warmup_steps >= 0, "optim.warmup_steps must not be negative")


BATCH_AXES = ("data", "fsdp")
"""Mesh axes over which the rows of a batch lie."""
TENSOR_AXIS = "tensor"
"""Mesh axis over which heads and hidden widths lie."""


@dataclasses.dataclass(frozen=True)
class MeshConfig:
    """Device mesh axes; their product is the number of devices."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    data: int = -1
    """Copies of the parameters, each with its part of the batch; -1 takes the devices left over."""
    fsdp: int = 1
    """Devices over which parameters, optimizer state and batch are sharded together."""
    tensor: int = 1
    """Devices over which heads and hidden widths are sharded."""

    def __post_init__(self) -> None:
        require(self.data == -1 or self.data > 0, "mesh.data must be positive, or -1")
        require_positive(self, "mesh", "fsdp", "tensor")


@dataclasses.dataclass(frozen=True)
class CheckpointConfig:
    """When checkpoints are written and which ones are kept."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

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
        require_positive(self, "checkpoint", "keep_last")


@dataclasses.dataclass(frozen=True)
class EvalConfig:
    """Validation during training."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

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

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

    every_steps: int = 10
    """Steps between rows of metrics.jsonl and TensorBoard scalars."""
    health_every_steps: int = 100
    """Steps between ternary and TTT health reports; 0 turns them off."""
    tensorboard: bool = True
    """Write TensorBoard event files."""

    def __post_init__(self) -> None:
        require_positive(self, "log", "every_steps")


@dataclasses.dataclass(frozen=True)
class TrainConfig:
    """Everything that defines a training run."""

    __pydantic_config__: ClassVar[dict[str, Any]] = STRICT

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
        require_positive(self, "config", "steps")
        require(
            self.data.batch_size % self.optim.accumulation == 0,
            f"data.batch_size={self.data.batch_size} must be a multiple of "
            f"optim.accumulation={self.optim.accumulation}",
        )
        require(
            self.optim.warmup_steps <= self.steps,
            f"optim.warmup_steps={self.optim.warmup_steps} exceeds steps={self.steps}",
        )
        require(
            not self.model.uses_ttt or self.data.seq_len % self.model.ttt.mini_batch == 0,
            f"data.seq_len={self.data.seq_len} must be a multiple of "
            f"model.ttt.mini_batch={self.model.ttt.mini_batch}",
        )
