"""The cases of the training benchmark: which model, numbers and shapes. Imports no jax."""

from __future__ import annotations

import dataclasses
import itertools
from typing import Literal

from bitttt_jax.config import (
    DataConfig,
    Mixer,
    ModelConfig,
    TernaryConfig,
    TrainConfig,
    TTTConfig,
)

Weights = Literal["int8", "fake_quant", "float"]
Dtype = Literal["float32", "bfloat16"]
MIXERS: tuple[Mixer, ...] = ("attention", "ttt_linear", "ttt_mlp")
WEIGHTS: tuple[Weights, ...] = ("int8", "fake_quant", "float")
DTYPES: tuple[Dtype, ...] = ("bfloat16", "float32")


@dataclasses.dataclass(frozen=True)
class Size:
    """The network that all cases share, and the lengths that are tried."""

    dim: int
    num_layers: int
    num_heads: int
    mlp_dim: int
    vocab_size: int
    seq_lens: tuple[int, ...]
    """The first is that of all cases but the growth with length."""
    batches: tuple[int, ...]
    batch: int


FULL = Size(256, 4, 4, 688, 2048, (512, 1024, 2048, 4096), (1, 2, 4, 8), 4)
TINY = Size(32, 2, 2, 64, 128, (32, 64), (1, 2), 2)
"""Shows in seconds that everything works; its numbers mean nothing."""


@dataclasses.dataclass(frozen=True)
class Case:
    """One thing to measure."""

    mixer: Mixer
    weights: Weights
    dtype: Dtype
    seq_len: int
    batch: int
    form: Literal["dual", "primal"] = "dual"
    """How a TTT mixer is computed."""
    implementation: Literal["auto", "xla"] = "auto"
    """Whether native code may compute parts of it."""
    peer: Literal["", "torch"] = ""
    """The other framework, where it isn't ours."""

    @property
    def name(self) -> str:
        """Unique among the cases."""
        kind = self.peer or {"float": "float"}.get(self.weights, f"ternary_{self.weights}")
        form = "" if self.form == "dual" else f"-{self.form}"
        implementation = "" if self.implementation == "auto" else f"-{self.implementation}"
        return (
            f"{self.mixer}{form}{implementation}-{kind}-{self.dtype}-T{self.seq_len}-b{self.batch}"
        )

    @property
    def is_slow(self) -> bool:
        """Whether a step takes so long that a few must do."""
        return self.form == "primal"


def all_cases(size: Size, with_torch: bool) -> dict[str, Case]:
    """The cases by name, in the order in which they are measured."""
    T, batch = size.seq_lens[0], size.batch
    cases = [
        Case(mixer, weights, dtype, T, batch)
        for mixer, weights, dtype in itertools.product(MIXERS, WEIGHTS, DTYPES)
    ]
    if with_torch:
        cases += [Case("attention", "float", dtype, T, batch, peer="torch") for dtype in DTYPES]
    for mixer in ("attention", "ttt_linear"):
        cases += growth_with_length(size, mixer)
        cases += growth_with_batch(size, mixer)
    cases.append(Case("ttt_linear", "int8", "bfloat16", T, batch, implementation="xla"))
    cases.append(Case("ttt_linear", "int8", "bfloat16", T, batch, form="primal"))
    return {case.name: case for case in cases}


def growth_with_length(size: Size, mixer: Mixer) -> list[Case]:
    """Longer and longer rows, with as many tokens in a step."""
    tokens = max(size.seq_lens)
    return [Case(mixer, "int8", "bfloat16", T, tokens // T) for T in size.seq_lens]


def growth_with_batch(size: Size, mixer: Mixer) -> list[Case]:
    """More and more rows of the same length."""
    return [Case(mixer, "int8", "bfloat16", size.seq_lens[0], batch) for batch in size.batches]


def make_config(case: Case, size: Size) -> TrainConfig:
    """The training run that a case of ours is a step of."""
    ternary = case.weights != "float"
    model = ModelConfig(
        vocab_size=size.vocab_size,
        dim=size.dim,
        num_layers=size.num_layers,
        num_heads=size.num_heads,
        mlp_dim=size.mlp_dim,
        mixers=(case.mixer,),
        compute_dtype=case.dtype,
        scan_unroll=size.num_layers,
        ternary=TernaryConfig(
            mixer=ternary,
            mlp=ternary,
            path="fake_quant" if case.weights == "fake_quant" else "int8",
        ),
        ttt=TTTConfig(form=case.form, remat_group=0, implementation=case.implementation),
    )
    return TrainConfig(
        name=case.name,
        model=model,
        data=DataConfig(seq_len=case.seq_len, batch_size=case.batch),
    )
