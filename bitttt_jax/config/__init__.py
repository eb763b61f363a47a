"""The configuration schema: frozen dataclasses, one source for flags, JSON, help and forms.

Imports nothing heavy, so that `--help` and launch scripts stay fast. `config_loading` reads
and writes these classes; the string under each field is its help text everywhere.
"""

from bitttt_jax.config.model import (
    Mixer,
    ModelConfig,
    RopeScalingConfig,
    Switch,
    TernaryConfig,
    TTTConfig,
)
from bitttt_jax.config.run import (
    BATCH_AXES,
    TENSOR_AXIS,
    CheckpointConfig,
    CleanConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    MeshConfig,
    OptimConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)

__all__ = [
    "BATCH_AXES",
    "TENSOR_AXIS",
    "CheckpointConfig",
    "CleanConfig",
    "DataConfig",
    "EvalConfig",
    "LogConfig",
    "MeshConfig",
    "Mixer",
    "ModelConfig",
    "OptimConfig",
    "RopeScalingConfig",
    "SourceConfig",
    "Switch",
    "TTTConfig",
    "TernaryConfig",
    "TokenizerConfig",
    "TrainConfig",
]
