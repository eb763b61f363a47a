"""TTT-Linear at the 350M size and budget of the TTT paper (arXiv:2407.04620), ternary.

Run:       bitttt train --config=ttt_350m --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 13,500 steps of 0.5M tokens, 7B in all.
Parameters: 343,582,464
"""

import dataclasses

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import load_config


def get_config() -> TrainConfig:
    base, lr = load_config("ttt_125m"), 1.5e-3
    return dataclasses.replace(
        base,
        name="ttt_350m",
        steps=13_500,
        model=dataclasses.replace(base.model, dim=1024, num_layers=24, num_heads=16, mlp_dim=2816),
        optim=dataclasses.replace(base.optim, lr=lr, warmup_steps=1350, final_lr_ratio=1e-5 / lr),
    )
