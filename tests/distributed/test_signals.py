from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from bitttt_jax.distributed.signals import StopRequest
from bitttt_jax.errors import ExitCode

ROOT = Path(__file__).parent.parent.parent


class TestOneProcess:
    @pytest.fixture(autouse=True)
    def no_late_signals(self) -> Iterator[None]:
        yield
        assert signal.getsignal(signal.SIGINT) is signal.default_int_handler

    def test_nothing_happened(self):
        with StopRequest() as stop:
            assert stop.poll(1) is None

    @pytest.mark.parametrize(
        ("numbers", "code"),
        [
            ([signal.SIGTERM], ExitCode.PREEMPTED),
            ([signal.SIGUSR2], ExitCode.PREEMPTED),
            ([signal.SIGINT], ExitCode.INTERRUPTED),
            ([signal.SIGTERM, signal.SIGTERM], ExitCode.PREEMPTED),
            ([signal.SIGINT, signal.SIGTERM], ExitCode.INTERRUPTED),
            ([signal.SIGTERM, signal.SIGINT], ExitCode.INTERRUPTED),
        ],
    )
    def test_signals_ask_for_a_stop(
        self, numbers: list[signal.Signals], code: ExitCode, capfd: pytest.CaptureFixture[str]
    ):
        with StopRequest() as stop:
            for number in numbers:
                signal.raise_signal(number)
            assert stop.poll(1) == code
            assert stop.poll(2) == code
        assert capfd.readouterr().err.count("saving a checkpoint") == len(numbers)

    def test_second_interrupt_is_at_once(self):
        with pytest.raises(KeyboardInterrupt), StopRequest():
            signal.raise_signal(signal.SIGINT)
            signal.raise_signal(signal.SIGINT)

    def test_second_interrupt_stays_one_whatever_it_breaks(self):
        with pytest.raises(KeyboardInterrupt), StopRequest():
            signal.raise_signal(signal.SIGINT)
            try:
                signal.raise_signal(signal.SIGINT)
            finally:
                raise OSError("half-written")

    def test_handlers_are_restored(self):
        before = signal.getsignal(signal.SIGTERM)
        with StopRequest():
            assert signal.getsignal(signal.SIGTERM) != before
        assert signal.getsignal(signal.SIGTERM) == before
        with pytest.raises(KeyboardInterrupt):
            signal.raise_signal(signal.SIGINT)

    def test_time_limit(self):
        with StopRequest(max_minutes=1e-9) as stop:
            assert stop.poll(1) == ExitCode.PREEMPTED
        with StopRequest(max_minutes=60) as stop:
            assert stop.poll(1) is None

    def test_other_threads_have_the_time_limit_only(self):
        codes = []

        def loop() -> None:
            with StopRequest(max_minutes=1e-9) as stop:
                codes.append(stop.poll(1))

        thread = threading.Thread(target=loop)
        thread.start()
        thread.join()
        assert codes == [ExitCode.PREEMPTED]


LOOP = """
import sys, threading
from bitttt_jax.distributed import processes
from bitttt_jax.distributed.signals import StopRequest
from bitttt_jax.errors import run_main

def main(argv):
    address, number, minutes = argv
    processes.configure("cpu", 1)
    processes.initialize(address, 2, int(number), timeout_s=60)
    with StopRequest(float(minutes)) as stop:
        print("ready", flush=True)
        for step in range(6000):
            threading.Event().wait(0.01)  # the step
            if code := stop.poll(step):
                print("stopped at", step, flush=True)
                return code

sys.exit(run_main(main, sys.argv[1:]))
"""


@pytest.mark.parametrize(
    ("number", "minutes", "code"),
    [
        (signal.SIGTERM, 0.0, 42),
        (signal.SIGUSR2, 0.0, 42),
        (signal.SIGINT, 0.0, 130),
        (None, 0.01, 42),
    ],
)
def test_two_processes_stop_at_the_same_step_with_the_same_code(
    number: signal.Signals | None, minutes: float, code: int
):
    with socket.socket() as probe:
        probe.bind(("", 0))
        address = f"localhost:{probe.getsockname()[1]}"
    workers = [
        subprocess.Popen(
            [sys.executable, "-c", LOOP, address, str(index), str(minutes)],
            cwd=ROOT,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            env=os.environ | {"JAX_NUM_CPU_DEVICES": "1"},
        )
        for index in range(2)
    ]
    try:
        stopped = []
        for worker in workers:
            assert worker.stdout
            while worker.stdout.readline() != "ready\n":
                assert worker.poll() is None
        if number:  # to one of them
            workers[1].send_signal(number)
        for worker in workers:
            output, errors = worker.communicate(timeout=60)
            assert worker.returncode == code, errors
            stopped.append([line for line in output.splitlines() if line.startswith("stopped")])
        assert stopped[0] == stopped[1] != []
    finally:
        for worker in workers:
            worker.kill()
            worker.communicate()
