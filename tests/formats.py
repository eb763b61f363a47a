"""The README's table of formats: every kind of model is written in every format, and read again.

python -m tests.formats      # writes the table into README.md
"""

from __future__ import annotations

import contextlib
import io
import tempfile
from pathlib import Path
from typing import Any

import jax
import numpy as np

import bitttt_jax
from bitttt_jax.commands import convert
from bitttt_jax.config import ModelConfig, TernaryConfig
from bitttt_jax.data.tokenizers import Tokenizer
from bitttt_jax.errors import ExitCode
from bitttt_jax.interop import huggingface_export
from bitttt_jax.interop.foreign import ForeignModel
from bitttt_jax.models.transformer import init_params

README = Path(__file__).parent.parent / "README.md"
BEGIN, END = "<!-- written by python -m tests.formats -->\n", "<!-- up to here: formats -->\n"

FLOAT = TernaryConfig(mixer=False, mlp=False)
MODELS: dict[str, dict[str, Any]] = {
    "ternary, as Llama": {},
    "ternary, as BitNet 2B4T": {"norm_placement": "subln", "mlp": "relu2_glu"},
    "ternary, with TTT": {"mixers": ("ttt_linear",)},
    "float, as Llama": {"ternary": FLOAT},
    "float, as Qwen2": {"ternary": FLOAT, "qkv_bias": True},
    "float, with a window": {"ternary": FLOAT, "window": 8},
}
FORMATS = {
    "packed": "packed folder, `packed`",
    "hf": "Hugging Face, `hf`",
    "hf-packed": "Hugging Face, `hf-packed`",
    "gguf-f16": "GGUF, `gguf-f16`",
    "gguf-tq1_0": "GGUF, `gguf-tq1_0`",
    "gguf-tq2_0": "GGUF, `gguf-tq2_0`",
    "gguf-i2_s": "GGUF, `gguf-i2_s`",
}
_READ_ONLY = """\
Read only: GGUF files with all types of tensors that the `gguf` package knows (Q4_0 to Q6_K and
others), and checkpoints of the TTT authors (`model_type: ttt`).
"""


def write_source(folder: Path, settings: dict[str, Any]) -> None:
    """Writes a small random model as a Hugging Face folder, from which the others are made."""
    config = ModelConfig(
        vocab_size=257, dim=256, num_layers=1, num_heads=4, mlp_dim=256, **settings
    )
    params = jax.jit(init_params, static_argnums=0)(config, jax.random.key(0))
    model = ForeignModel(config, params, Tokenizer.bytes(), "random", 64, None)
    huggingface_export.export(folder, model)


def goes_through(source: Path, to: str, folder: Path) -> bool:
    """Whether a model can be written in a format; if so it must come back as the same one."""
    path = folder / (f"{to}.gguf" if to.startswith("gguf") else to)
    with (
        contextlib.redirect_stdout(io.StringIO()),
        contextlib.redirect_stderr(io.StringIO()) as err,
    ):
        code = convert.main([str(source), str(path), f"--to={to}"])
    if code != ExitCode.OK:
        assert code == ExitCode.USAGE, err.getvalue()
        assert not path.exists()
        return False
    tokens = np.arange(32)
    before, after = (bitttt_jax.load(place).logits(tokens) for place in (source, path))
    assert np.sqrt(np.mean((after - before) ** 2)) < 0.05 * before.std()
    return True


def table() -> str:
    """The table, by trying."""
    found: dict[str, list[str]] = {to: [] for to in FORMATS}
    for settings in MODELS.values():
        with tempfile.TemporaryDirectory() as temporary:
            write_source(Path(temporary) / "source", settings)
            for to, cells in found.items():
                works = goes_through(Path(temporary) / "source", to, Path(temporary))
                cells.append("read, write" if works else "no")
    lines = [f"| | {' | '.join(MODELS)} |", "|---" * (len(MODELS) + 1) + "|"]
    lines += [f"| {FORMATS[to]} | {' | '.join(cells)} |" for to, cells in found.items()]
    return "\n".join(lines) + f"\n\n{_READ_ONLY}"


def in_readme() -> str:
    """The table that the README has."""
    return README.read_text("utf-8").split(BEGIN)[1].split(END)[0].strip("\n") + "\n"


if __name__ == "__main__":
    text = README.read_text("utf-8")
    before, rest = text.split(BEGIN)
    README.write_text(f"{before}{BEGIN}\n{table()}\n{END}{rest.split(END)[1]}", "utf-8")
