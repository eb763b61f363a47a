"""TTT-Linear at the 1.3B size and budget of the TTT paper (arXiv:2407.04620), ternary.

Run:       bitttt train --config=ttt_1b3 --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 50,000 steps of 0.5M tokens, 26B in all.
Parameters: 1,285,639,296
"""

import dataclasses

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import load_config


def get_config() -> TrainConfig:
    base, lr = load_config("ttt_125m"), 1e-3
    return dataclasses.replace(
        base,
        name="ttt_1b3",
        steps=50_000,
        model=dataclasses.replace(base.model, dim=2048, num_layers=24, num_heads=32, mlp_dim=5504),
        optim=dataclasses.replace(base.optim, lr=lr, warmup_steps=5000, final_lr_ratio=1e-5 / lr),
    )
