"""BitNet b1.58 700M (arXiv:2402.17764): a Llama-style transformer with ternary weights.

Sizes and schedule are those of the authors' training tips: two straight lines of learning rate
with a drop half-way, where weight decay ends too. The last rate, a tenth of the peak, is ours.

Run:       bitttt train --config=bitnet_700m --config.data.sources.0.path=TEXT
Hardware:  accelerators; weights, gradients and AdamW moments take 16 bytes a parameter, which
           --config.mesh.fsdp=N spreads. --config.optim.accumulation=N saves activation memory.
Expect:    not run at this size by us. 95,367 steps of 1M tokens, 100B in all.
Parameters: 778,102,272
"""

from bitttt_jax.config import (
    DataConfig,
    ModelConfig,
    OptimConfig,
    SourceConfig,
    TernaryConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="bitnet_700m",
        steps=95_367,
        model=ModelConfig(
            vocab_size=32_000,
            dim=1536,
            num_layers=24,
            num_heads=24,
            mlp_dim=4096,
            mixers=("attention",),
            tie_embeddings=False,
            remat="full",
            ternary=TernaryConfig(inner_norm=True),
        ),
        data=DataConfig(
            sources=(SourceConfig(path="(set --config.data.sources.0.path=TEXT)"),),
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=32_000),
            seq_len=2048,
            batch_size=512,
        ),
        optim=OptimConfig(
            lr=1.5e-3,
            schedule="two_stage",
            stage2_lr_ratio=1e-3 / 1.5e-3,
            warmup_steps=375,
            beta1=0.9,
            beta2=0.95,
            weight_decay=0.1,
        ),
    )
