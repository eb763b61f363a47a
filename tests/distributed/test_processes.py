from __future__ import annotations

import http.server
import socket
import stat
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import jax
import pytest

from bitttt_jax.distributed import processes
from bitttt_jax.errors import ConfigError

ROOT = Path(__file__).parent.parent.parent

SLURM = {
    "SLURM_JOB_ID": "7",
    "SLURM_STEP_NODELIST": "node[1-2]",
    "SLURM_NTASKS": "4",
    "SLURM_PROCID": "1",
    "SLURM_LOCALID": "1",
    "SLURM_STEP_NUM_NODES": "2",
}


def run_python(code: str, timeout_s: float = 60) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=timeout_s
    )


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("", 0))
        return int(probe.getsockname()[1])


class TestFindCluster:
    def test_one_process(self):
        assert processes.find_cluster("", 0, 0, {}) is None
        assert processes.find_cluster("", 1, 0, SLURM) is None

    def test_flags_win_over_the_surroundings(self):
        found = processes.find_cluster("h0:1", 3, 2, SLURM)
        assert found == {
            "coordinator_address": "h0:1",
            "num_processes": 3,
            "process_id": 2,
            "cluster_detection_method": "deactivate",
        }

    def test_slurm_step_of_several_tasks(self):
        found = processes.find_cluster("", 0, 0, SLURM)
        assert found == {"cluster_detection_method": "slurm", "local_device_ids": None}

    @pytest.mark.parametrize("change", [{"SLURM_NTASKS": "1"}, {"SLURM_STEP_NODELIST": None}])
    def test_slurm_batch_script_or_single_task_is_one_process(self, change: dict[str, str | None]):
        environ = {name: value for name, value in (SLURM | change).items() if value is not None}
        assert processes.find_cluster("", 0, 0, environ) is None

    @pytest.mark.parametrize(
        ("environ", "devices"),
        [
            ({"CUDA_VISIBLE_DEVICES": "3"}, [0]),
            ({"CUDA_VISIBLE_DEVICES": "0,1"}, None),
            ({"SLURM_STEP_NUM_NODES": "4", "SLURM_GPUS_ON_NODE": "2"}, [0, 1]),
            ({"SLURM_STEP_NUM_NODES": "4"}, None),
            ({"SLURM_GPUS_ON_NODE": "2"}, None),
        ],
    )
    def test_slurm_gpus_of_a_task(self, environ: dict[str, str], devices: list[int] | None):
        found = processes.find_cluster("", 0, 0, SLURM | environ)
        assert found is not None
        assert found["local_device_ids"] == devices

    @pytest.mark.parametrize(
        ("environ", "is_pod"),
        [
            ({"TPU_WORKER_HOSTNAMES": "a,b"}, True),
            ({"TPU_WORKER_HOSTNAMES": "a"}, False),
            ({"TPU_PROCESS_ADDRESSES": "a:1,b:1"}, True),
            ({"TPU_WORKER_HOSTNAMES": "a", "MEGASCALE_NUM_SLICES": "2"}, True),
        ],
    )
    def test_tpu_pod_unless_the_platform_is_cpu(self, environ: dict[str, str], is_pod: bool):
        assert processes.find_cluster("", 0, 0, environ) is None  # conftest chose the CPU
        platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
        jax.config.update("jax_platforms", None)
        try:
            assert processes.find_cluster("", 0, 0, environ) == ({} if is_pod else None)
        finally:
            jax.config.update("jax_platforms", platforms)


class TestMetadata:
    @pytest.fixture
    def server(self) -> Iterator[str]:
        class Handler(http.server.BaseHTTPRequestHandler):
            def do_GET(self):
                is_asked = self.path.endswith("/attributes/agent-worker-number")
                is_google = self.headers["Metadata-Flavor"] == "Google"
                self.send_response(200 if is_asked and is_google else 404)
                self.end_headers()

            def log_message(self, *args: object) -> None:
                pass

        with http.server.HTTPServer(("127.0.0.1", 0), Handler) as instance:
            thread = threading.Thread(target=instance.serve_forever)
            thread.start()
            yield f"127.0.0.1:{instance.server_port}"
            instance.shutdown()
            thread.join()

    def test_worker(self, server: str):
        assert processes.has_tpu_metadata(server)

    def test_nobody_there(self):
        assert not processes.has_tpu_metadata(f"127.0.0.1:{free_port()}")


class TestCoordinator:
    @pytest.mark.parametrize("address", ["h0", "h0:", ":80", "h0:http", "h0:0", "h0:70000"])
    def test_not_host_and_port(self, address: str):
        with pytest.raises(ConfigError, match="is not HOST:PORT"):
            processes.check_coordinator(address, 0)

    def test_unknown_host(self):
        with pytest.raises(ConfigError, match=r"no address for no-such-host\.invalid"):
            processes.check_coordinator("no-such-host.invalid:80", 1)

    def test_busy_port_stops_process_0_only(self):
        with socket.socket() as other:
            other.bind(("", 0))
            other.listen()
            address = f"localhost:{other.getsockname()[1]}"
            processes.check_coordinator(address, 1)
            with pytest.raises(ConfigError, match="can't listen on port"):
                processes.check_coordinator(address, 0)

    @pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "[::1]", socket.gethostname()])
    def test_meeting_on_this_machine_is_fine(self, host: str):
        processes.check_coordinator(f"{host}:{free_port()}", 0)
        processes.check_coordinator(f"{host}:{free_port()}", 1)

    def test_name_that_means_itself_everywhere(self, monkeypatch: pytest.MonkeyPatch):
        # As with a line "127.0.1.1 h0" in the /etc/hosts of every machine.
        found = [(socket.AF_INET, socket.SOCK_STREAM, 6, "", ("127.0.1.1", 80))]
        monkeypatch.setattr(socket, "getaddrinfo", lambda *args, **kwargs: found)
        monkeypatch.setattr(socket, "gethostname", lambda: "h1.example")
        with pytest.raises(ConfigError, match=r"h0:80 means this machine.*\n.*127\.0\.1\.1"):
            processes.check_coordinator("h0:80", 1)
        processes.check_coordinator("h1:80", 1)


def test_process_that_waits_in_vain_explains_itself():
    done = run_python(
        "from bitttt_jax.distributed import processes\n"
        f"processes.initialize('localhost:{free_port()}', 2, 0, timeout_s=1)\n"
    )
    assert done.returncode == 2
    assert "error: waited 1 s for the other processes at localhost" in done.stderr
    assert "Check failure" not in done.stderr


def test_simulated_devices_and_one_process():
    done = run_python(
        "from bitttt_jax.distributed import processes\n"
        "processes.configure('', sim_devices=3)\n"
        "processes.initialize()\n"
        "print(processes.describe_process())\n"
    )
    host = socket.gethostname()
    assert done.stdout == f"process 0/1 on {host}, 3 local of 3 devices\n", done.stderr


class TestCompileCache:
    @pytest.fixture(autouse=True)
    def no_environment(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
        before = jax.config.jax_compilation_cache_dir  # type: ignore[attr-defined]
        monkeypatch.delenv("JAX_COMPILATION_CACHE_DIR")
        monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
        yield
        jax.config.update("jax_compilation_cache_dir", before)

    def test_private_folder_in_the_users_cache(self, tmp_path: Path):
        folder = processes.use_compile_cache()
        assert folder == tmp_path / "cache" / "bitttt" / "jax"
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700
        assert jax.config.jax_compilation_cache_dir == str(folder)  # type: ignore[attr-defined]

    def test_existing_folder_becomes_private(self, tmp_path: Path):
        folder = tmp_path / "cache" / "bitttt" / "jax"
        folder.mkdir(parents=True)
        folder.chmod(0o777)
        assert processes.use_compile_cache() == folder
        assert stat.S_IMODE(folder.stat().st_mode) == 0o700

    def test_environment_decides(self, monkeypatch: pytest.MonkeyPatch, tmp_path: Path):
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", str(tmp_path / "mine"))
        assert processes.use_compile_cache() == tmp_path / "mine"
        monkeypatch.setenv("JAX_COMPILATION_CACHE_DIR", "")
        assert processes.use_compile_cache() is None
        assert not (tmp_path / "cache").exists()

    def test_no_place_is_a_notice(self, tmp_path: Path, capsys: pytest.CaptureFixture[str]):
        (tmp_path / "cache").write_text("in the way")
        assert processes.use_compile_cache() is None
        assert "compiled programs aren't kept" in capsys.readouterr().err
