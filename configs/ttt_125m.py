"""TTT-Linear at the 125M size and budget of the TTT paper (arXiv:2407.04620), ternary.

Run:       bitttt train --config=ttt_125m --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter.
           --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 4,800 steps of 0.5M tokens, 2.5B in all.
Parameters: 110,424,144
"""

from bitttt_jax.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    lr = 3e-3
    return TrainConfig(
        name="ttt_125m",
        steps=4800,
        model=ModelConfig(
            vocab_size=32_000,
            dim=768,
            num_layers=12,
            num_heads=12,
            mlp_dim=2048,
            mixers=("ttt_linear",),
            remat="full",
        ),
        data=DataConfig(
            sources=(SourceConfig(path="(set --config.data.sources.0.path=TEXT)"),),
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=32_000),
            seq_len=2048,
            batch_size=256,
        ),
        optim=OptimConfig(
            lr=lr,
            schedule="cosine",
            warmup_steps=480,
            final_lr_ratio=1e-5 / lr,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
            clip_norm=1.0,
        ),
    )
