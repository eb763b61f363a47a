"""What all runs of this study share; `run.py` changes mixers, weights, MLP width, text and seed.

Run:       python -m experiments.mixers_and_ternary.run
Hardware:  any computer; sized for 2 to 3 minutes a run on two cores.
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
        name="mixers_and_ternary",
        steps=500,
        model=ModelConfig(dim=192, num_layers=4, num_heads=3, mlp_dim=512, scan_unroll=4),
        data=DataConfig(
            tokenizer=TokenizerConfig(kind="bpe", vocab_size=2048), seq_len=256, batch_size=8
        ),
        optim=OptimConfig(lr=2e-3, warmup_steps=50),
        checkpoint=CheckpointConfig(every_steps=0, every_minutes=2.0, keep_last=1, keep_best=0),
        # Every validation reads all of the held-out text, so that a curve is of one quantity.
        eval=EvalConfig(every_steps=250, batches=1_000_000),
        log=LogConfig(every_steps=10, health_every_steps=100),
    )
