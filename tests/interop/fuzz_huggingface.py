"""Any bytes as a safetensors file, a config.json or an index: read, or refused with a `DataError`.

`python -m tests.interop.run_fuzzer CORPUS -max_total_time=600` looks for inputs that do neither;
the first byte of one says what the rest is. `test_fuzz_corpus.py` replays a small corpus.
"""

from __future__ import annotations

from pathlib import Path

from bitttt_jax.data import safetensors
from bitttt_jax.errors import DataError
from bitttt_jax.interop import fields, huggingface_config, ttt_lm_config
from bitttt_jax.interop.weights import Weights

KINDS = ("safetensors", "config", "index")


def check(kind: str, data: bytes, folder: Path) -> bool:
    """Reads one input; returns whether it was taken."""
    try:
        if kind == "safetensors":
            _check_file(data, folder / "model.safetensors")
        elif kind == "config":
            _check_config(data, folder / "config.json")
        else:
            (folder / "model.safetensors").unlink(missing_ok=True)
            (folder / "model.safetensors.index.json").write_bytes(data)
            Weights(folder)
    except DataError as error:
        str(error).encode("utf-8", "backslashreplace")
        return False
    return True


def _check_file(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    file = safetensors.File(path)
    whole, _ = safetensors.read(path)
    for name in file.entries:
        assert file.read(name).tobytes() == whole[name].tobytes()


def _check_config(data: bytes, path: Path) -> None:
    path.write_bytes(data)
    values = fields.read_json(path)
    if values.values.get("model_type") == ttt_lm_config.MODEL_TYPE:
        ttt_lm_config.read_config(values)
    else:
        huggingface_config.read_architecture(values)


def one_input(data: bytes, folder: Path) -> bool:
    """Checks what the fuzzer made."""
    return check(KINDS[data[0] % len(KINDS)], data[1:], folder) if data else False
