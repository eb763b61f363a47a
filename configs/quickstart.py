"""A first model: TTT-Linear with ternary weights, trained on Python's own standard library.

Run:       bitttt train --config=quickstart --workdir=runs/quickstart
Hardware:  any computer; needs no download and no accelerator.
Parameters: 3,779,920
"""

from bitttt_jax.config import (
    DataConfig,
    EvalConfig,
    ModelConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
    TTTConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="quickstart",
        steps=850,
        model=ModelConfig(
            dim=256,
            num_layers=4,
            num_heads=4,
            mlp_dim=688,
            mixers=("ttt_linear",),
            scan_unroll=4,
            ttt=TTTConfig(remat_group=0),
        ),
        data=DataConfig(
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048), seq_len=512, batch_size=4
        ),
        optim=OptimConfig(lr=6e-3, warmup_steps=100),
        eval=EvalConfig(every_steps=170, sample_prompt="    def __init__(self"),
    )
