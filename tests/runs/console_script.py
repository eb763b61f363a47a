"""A whole run as the console sees it, with fixed times; run in a terminal by `test_console`."""

import sys
from pathlib import Path

from bitttt_jax.runs.console import Console
from bitttt_jax.runs.console_memory import HostMemory
from bitttt_jax.runs.console_summary import Evaluation, RunSummary
from bitttt_jax.runs.failures import Failure

GIB = 2**30
METRICS = {
    "train/loss": 2.214,
    "train/ppl": 9.152,
    "train/bpb": 3.194,
    "lr": 2.1e-3,
    "grad_norm": 0.612,
    "perf/tokens_per_s": 41_200.0,
    "perf/tflops_per_device": 0.0523,
    "perf/mfu": 0.312,
    "perf/step_s": 0.2,
    "mem/peak_gib": 0.31,
    "ttt/inner_loss": 0.5,
}
HOSTS = [
    HostMemory(name, tuple(int(GIB * gib) for gib in used), 80 * GIB)
    for name, used in [
        ("host0", (62.6, 68.4, 64, 65, 66, 63, 67, 65)),
        ("host1", (62.5, 69, 70, 66, 67, 77.9, 64, 63)),
    ]
]
FAILURE = Failure("out_of_memory", 3, "out of device memory", "RESOURCE_EXHAUSTED", ("a", "b"))
SUMMARY = RunSummary(
    status="finished",
    step=1000,
    steps=1000,
    seconds=300.0,
    tokens=8_192_000,
    final=Evaluation(1000, 2.3, 3.32),
    best=Evaluation(800, 2.29),
    peak_bytes=GIB // 3,
    checkpoints=(600, 800, 1000),
    checkpoint_folder="runs/tiny/ckpt",
    next_commands=("bitttt chat runs/tiny", "tensorboard --logdir runs/tiny/tb"),
)


def play_lines(console: Console) -> None:
    """Everything that stays on the screen."""
    console.banner(
        "bitttt-jax 0.1.0  run runs/tiny  NEW RUN  (Ctrl-C saves and stops)",
        [
            ("model", "tiny  1.8 M params: 1.3 M ternary (0.33 MB packed) + 0.5 M float32"),
            ("data", "tinyshakespeare 1.1 MB · batch 32×256 = 8,192 tok/step"),
            ("mesh", "data=1 fsdp=1 tensor=1 on 1 × cpu"),
        ],
    )
    console.evaluation(Evaluation(600, 2.301, 3.32), train_loss=2.24, seconds=1.9)
    console.checkpoint(600, Path("runs/tiny/ckpt/600"), 21_400_000, 0.3, 3)
    console.memory(HOSTS, platform="gpu")
    console.memory([HostMemory("host0", (), 0)], platform="cpu")
    console.sample(
        "To be", ", or not [bold]to[/bold] be:\x1b[31m\rthat\x07 is the\n\tquestion\u202e"
    )
    console.warning("the loss is 3 times its average")
    console.summary(SUMMARY)


def play_motion(console: Console, steps: int = 1000) -> None:
    """Everything that moves."""
    with console.phase("compile", "train_step"):
        pass
    for step in (1, 620, steps):
        console.progress(step, steps, METRICS, 76.0)
        console.eval_progress(3, 16)
        console.evaluation(Evaluation(step, 2.301), seconds=1.9)


if __name__ == "__main__":
    with Console(log_file=Path(sys.argv[1]), progress_seconds=0) as terminal:
        play_motion(terminal)
        if "--interrupt" in sys.argv:
            raise KeyboardInterrupt
        play_lines(terminal)
