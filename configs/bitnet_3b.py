"""BitNet b1.58 3B (arXiv:2402.17764): a Llama-style transformer with ternary weights.

Run:       bitttt train --config=bitnet_3b --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 95,367 steps of 1M tokens, 100B in all.
Parameters: 3,427,031,040
"""

import dataclasses

from bitttt_jax.config import TrainConfig
from bitttt_jax.config_loading import load_config


def get_config() -> TrainConfig:
    base = load_config("bitnet_700m")
    return dataclasses.replace(
        base,
        name="bitnet_3b",
        model=dataclasses.replace(base.model, dim=3200, num_layers=26, num_heads=32, mlp_dim=8640),
        optim=dataclasses.replace(base.optim, lr=1.2e-3, stage2_lr_ratio=8e-4 / 1.2e-3),
    )
