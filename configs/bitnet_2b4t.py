"""The architecture of BitNet b1.58 2B4T (arXiv:2504.12285): sub-norms, squared ReLU, tied head.

The authors trained on 4T tokens and published neither the learning rates nor the data mixture:
the optimizer values and the 100B tokens here are those of our bitnet_3b, a place to start from.

Run:       bitttt train --config=bitnet_2b4t --config.data.sources.0.path=TEXT
               --config.data.tokenizer.path=tokenizer.json    (that of Llama 3: 128,256 tokens)
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us.
Parameters: 2,412,820,480
"""

import dataclasses

from bitttt_jax.config import ModelConfig, TokenizerConfig, TrainConfig
from bitttt_jax.config_loading import load_config


def get_config() -> TrainConfig:
    base = load_config("bitnet_3b")
    tokenizer = TokenizerConfig(kind="file", path="(set --config.data.tokenizer.path=FILE)")
    return dataclasses.replace(
        base,
        name="bitnet_2b4t",
        model=ModelConfig(
            vocab_size=128_256,
            dim=2560,
            num_layers=30,
            num_heads=20,
            num_kv_heads=5,
            mlp_dim=6912,
            mlp="relu2_glu",
            mixers=("attention",),
            norm_placement="subln",
            norm_eps=1e-5,
            rope_theta=500_000.0,
            tie_embeddings=True,
            init_std=0.02,
            remat="full",
        ),
        data=dataclasses.replace(base.data, tokenizer=tokenizer, seq_len=4096, batch_size=256),
    )
