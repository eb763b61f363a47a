"""TTT-Linear at the 760M size and budget of the TTT paper (arXiv:2407.04620), ternary.

Run:       bitttt train --config=ttt_760m --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 29,000 steps of 0.5M tokens, 15B in all.
Parameters: 733,608,192
"""

import dataclasses

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import load_config


def get_config() -> TrainConfig:
    base, lr = load_config("ttt_125m"), 1.25e-3
    return dataclasses.replace(
        base,
        name="ttt_760m",
        steps=29_000,
        model=dataclasses.replace(base.model, dim=1536, num_layers=24, num_heads=16, mlp_dim=4096),
        optim=dataclasses.replace(base.optim, lr=lr, warmup_steps=2900, final_lr_ratio=1e-5 / lr),
    )
