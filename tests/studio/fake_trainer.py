"""A program that behaves like a training, well or badly: `python -m fake_trainer HOW FOLDER`."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time

from bitttt_jax.runs.directory import RunDirectory


def main(how: str, folder: str, *rest: str) -> int:
    run = RunDirectory.open(folder, writer=True)
    if how == "exit":
        print("error: it didn't want to\n  because of this\n  Try: something else; another thing")
        return int(rest[0])
    if how == "kill":
        print("the last words", flush=True)
        os.kill(os.getpid(), signal.SIGKILL)
    if how == "flood":
        line = b"\x1b[31mno carriage is \rreturned\x1b[0m " + b"x" * 100 + b"\n"
        for _ in range(int(rest[0]) // len(line)):
            os.write(1, line)
        return 0
    with run:
        run.start()
        run.update(state="running", step=1, steps=10)
        run.metric({"step": 1, "train/loss": 3.0, "perf/step_s": 0.01})
        if how == "save":
            signal.signal(signal.SIGTERM, lambda *_: None)
            (run.path / "ready").touch()
            signal.pause()
            run.update(step=2)
            run.finish("stopped", 42)
            return 42
        if how == "stubborn":
            signal.signal(signal.SIGTERM, signal.SIG_IGN)
            code = "import signal, time; signal.signal(15, signal.SIG_IGN); time.sleep(600)"
            # One that stays in the group, and one that has left it.
            for apart in (False, True):
                child = subprocess.Popen([sys.executable, "-c", code], start_new_session=apart)
                (run.path / f"child-{apart}").write_text(str(child.pid))
        if how == "linger":
            run.finish("finished", 0)
            run._heartbeat.close()
            run._heartbeat = None
        (run.path / "ready").touch()
        time.sleep(600)
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
