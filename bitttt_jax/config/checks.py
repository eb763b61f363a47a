"""What all classes of the configuration share."""

from __future__ import annotations

from typing import Any

from bitttt_jax.errors import ConfigError

# Read by pydantic: unknown keys and NaN are errors, attribute docstrings become descriptions.
STRICT: dict[str, Any] = {
    "extra": "forbid",
    "allow_inf_nan": False,
    "use_attribute_docstrings": True,
}


def require(condition: bool, message: str) -> None:
    """Refuses a value with a message where the condition doesn't hold."""
    if not condition:
        raise ConfigError(message)


def require_positive(config: Any, prefix: str, *names: str) -> None:
    """Refuses values of fields that aren't positive; `prefix` is where the config stands."""
    for name in names:
        value = getattr(config, name)
        require(value > 0, f"{prefix}.{name} must be positive, got {value}")
