"""What every reader of other programs' model files returns."""

from __future__ import annotations

import dataclasses
from typing import Any, Literal

from bitttt_jax.config import ModelConfig
from bitttt_jax.data.tokenizers import Tokenizer

WeightType = Literal["bfloat16", "float32", "int8"]
"""How weights that aren't ternary are kept: in bfloat16, in float32 (and the model computed in it),
or as int8 rows with a scale each (`tables.QuantizedTable`); norms and biases are float32."""


@dataclasses.dataclass(frozen=True)
class ForeignModel:
    """A model read from another program's files."""

    config: ModelConfig
    params: Any
    """A tree for each group (`parameters.unstack`); ternary weights are packed."""
    tokenizer: Tokenizer
    description: str
    """Format, architecture and types, in a few words."""
    context: int | None
    """Most tokens of a sequence that the model was made for; None where nothing bounds it."""
    chat_template: str | None
    """Jinja template of conversations, where the model has one."""
