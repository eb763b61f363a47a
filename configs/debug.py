"""Seconds on a CPU, to see that everything runs: both kinds of mixer, evaluation, checkpoints.

Run:       bitttt train --config=debug --workdir=runs/debug
Hardware:  any computer.
Expect:    nothing from the text it writes.
Parameters: 124,690
"""

from bitttt_jax.config import (
    CheckpointConfig,
    DataConfig,
    EvalConfig,
    LogConfig,
    ModelConfig,
    OptimConfig,
    TrainConfig,
)


def get_config() -> TrainConfig:
    return TrainConfig(
        name="debug",
        steps=60,
        model=ModelConfig(
            dim=64,
            num_layers=2,
            num_heads=2,
            mlp_dim=176,
            mixers=("ttt_linear", "attention"),
            compute_dtype="float32",
        ),
        data=DataConfig(seq_len=64, batch_size=8),
        optim=OptimConfig(lr=3e-3, warmup_steps=10),
        checkpoint=CheckpointConfig(every_steps=30),
        eval=EvalConfig(every_steps=30, batches=2, sample_prompt="def ", sample_tokens=16),
        log=LogConfig(every_steps=5, health_every_steps=20),
    )
