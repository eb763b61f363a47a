"""What all runs of this study share; `run.py` changes mixers, weights, steps, text and seed.

Depth, width and heads are those of the yardstick, nanoGPT's character-level recipe for CPUs.

Run:       python -m experiments.char_shakespeare.run --text=tinyshakespeare.txt
Hardware:  any computer; comparable with the yardstick on two cores.
"""

from bitttt_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TokenizerConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="char_shakespeare",
        model=ModelConfig(dim=128, num_layers=4, num_heads=4, mlp_dim=344, scan_unroll=4),
        data=DataConfig(
            tokenizer=TokenizerConfig(kind="bytes"),
            seq_len=256,
            batch_size=4,
            validation_fraction=0.0,
        ),
        optim=OptimConfig(lr=3e-3, warmup_steps=50, final_lr_ratio=0.05),
        checkpoint=CheckpointConfig(every_steps=0, every_minutes=0.0, keep_last=1, keep_best=0),
        # The clock is for steps: what isn't needed for them is off.
        eval=EvalConfig(every_steps=0),
        log=LogConfig(every_steps=10, health_every_steps=0),
    )
