"""Start-up of JAX: platform, compile cache, and the processes of a run that find each other.

Everything here must happen before the first computation. JAX's own rendezvous is used only where
there are several processes: by flags, inside `srun`, or on a TPU pod.
"""

from __future__ import annotations

import contextlib
import glob
import importlib.util
import ipaddress
import os
import socket
import sys
import threading
import time
import urllib.request
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax

from bitttt_jax.errors import ConfigError

_TIMEOUT_S = 300
# Measured with jax 0.10.2: 4 a device still deadlock, 16 don't.
_CPU_THREADS_PER_DEVICE = 16
_SLURM_STEP = (
    "SLURM_JOB_ID",
    "SLURM_STEP_NODELIST",
    "SLURM_NTASKS",
    "SLURM_PROCID",
    "SLURM_LOCALID",
)


def configure(platform: str = "", sim_devices: int = 0) -> None:
    """Chooses the devices.

    Args:
      platform: `cpu`, `gpu` or `tpu`; empty for JAX's choice.
      sim_devices: number of simulated CPU devices instead of real ones; 0 for real ones.
    """
    if sim_devices:
        platform = "cpu"
        jax.config.update("jax_num_cpu_devices", sim_devices)
    if platform:
        jax.config.update("jax_platforms", platform)


def use_compile_cache() -> Path | None:
    """Keeps compiled programs on disk, so that the next start of the same run is quick.

    The folder is JAX_COMPILATION_CACHE_DIR if that is set, else `bitttt/jax` in the user's cache
    folder. Loading from it runs code, so nobody else may be able to write there.

    Returns:
      The folder in use; None, after a line on stderr, if there can be none.
    """
    if "JAX_COMPILATION_CACHE_DIR" in os.environ:
        folder = os.environ["JAX_COMPILATION_CACHE_DIR"]  # JAX has read it
        return Path(folder) if folder else None
    try:
        path = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bitttt" / "jax"
        path.mkdir(mode=0o700, parents=True, exist_ok=True)
        path.chmod(0o700)  # fails on a folder of somebody else
    except (OSError, RuntimeError) as error:
        print(f"compiled programs aren't kept for the next start: {error}", file=sys.stderr)
        return None
    jax.config.update("jax_compilation_cache_dir", str(path))
    return path


def initialize(
    coordinator: str = "",
    num_processes: int = 0,
    process_id: int = 0,
    *,
    timeout_s: int = _TIMEOUT_S,
) -> None:
    """Connects the processes of the run; does nothing where there is one.

    If the processes don't all arrive, the process explains that on stderr and ends with exit
    code 2: JAX itself would abort it.

    Args:
      coordinator: HOST:PORT of process 0; empty to find a SLURM step or a TPU pod.
      num_processes: number of processes, if given by flag.
      process_id: number of this one, if given by flag.
      timeout_s: seconds to wait for the others.

    Raises:
      ConfigError: a coordinator that can't work.
    """
    parameters = find_cluster(coordinator, num_processes, process_id, os.environ)
    if parameters is None:
        return
    if coordinator:
        check_coordinator(coordinator, process_id)
    _enlarge_cpu_thread_pool()
    where = f" at {coordinator}" if coordinator else ""
    with _deadline(timeout_s, f"the other processes{where}"):
        # The margin lets our message come before JAX's abort.
        jax.distributed.initialize(**parameters, initialization_timeout=timeout_s + 60)


def describe_process() -> str:
    """A line such as `process 3/16 on h3, 8 local of 128 devices`."""
    host = socket.gethostname()
    return (
        f"process {jax.process_index()}/{jax.process_count()} on {host}, "
        f"{jax.local_device_count()} local of {jax.device_count()} devices"
    )


def find_cluster(
    coordinator: str, num_processes: int, process_id: int, environ: Mapping[str, str]
) -> dict[str, Any] | None:
    """Arguments for `jax.distributed.initialize`, or None for a process on its own."""
    if num_processes == 1:
        return None
    if coordinator:
        return {
            "coordinator_address": coordinator,
            "num_processes": num_processes,
            "process_id": process_id,
            "cluster_detection_method": "deactivate",
        }
    # SLURM_NTASKS alone is also set in a batch script, where no other process runs.
    if all(name in environ for name in _SLURM_STEP) and int(environ["SLURM_NTASKS"]) > 1:
        return {
            "cluster_detection_method": "slurm",
            "local_device_ids": _slurm_local_devices(environ),
        }
    platforms = jax.config.jax_platforms  # type: ignore[attr-defined]
    if platforms != "cpu" and _on_tpu_pod(environ):
        return {}
    return None


def check_coordinator(coordinator: str, process_id: int) -> None:
    """Refuses an address at which the processes can't meet.

    Args:
      coordinator: HOST:PORT.
      process_id: number of this process; process 0 will listen there.

    Raises:
      ConfigError: no port, an unknown host, a busy port, or a name that means another machine on
        every machine.
    """
    host, _, port = coordinator.rpartition(":")
    if not host or not port.isdecimal() or not 0 < int(port) < 65536:
        raise ConfigError(
            f"--coordinator={coordinator} is not HOST:PORT", fix=f"{coordinator}:12355"
        )
    host = host.strip("[]")
    try:
        found = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
    except socket.gaierror as error:
        raise ConfigError(f"--coordinator={coordinator}: no address for {host} ({error})") from None
    if process_id == 0:
        _check_port_is_free(int(port))
        return
    loops = all(ipaddress.ip_address(str(address[4][0])).is_loopback for address in found)
    own_name = socket.gethostname().partition(".")[0]
    if loops and not _is_loopback_name(host) and host.partition(".")[0] != own_name:
        raise ConfigError(
            f"--coordinator={coordinator} means this machine itself here on {own_name}",
            f"{host} has the loopback address {found[0][4][0]}, probably from /etc/hosts",
            "the address of process 0 that the other machines see",
        )


def _enlarge_cpu_thread_pool() -> None:
    """Keeps CPU devices of several processes from waiting for each other for ever.

    A collective holds a thread until the other processes arrive. XLA has a thread per core, which
    queued steps use up; it reads NPROC in place of the number of cores.
    """
    num_devices = max(1, jax.config.jax_num_cpu_devices)  # type: ignore[attr-defined]
    num_threads = max(os.cpu_count() or 1, _CPU_THREADS_PER_DEVICE * num_devices)
    os.environ.setdefault("NPROC", str(num_threads))


def _is_loopback_name(host: str) -> bool:
    if host == "localhost":
        return True
    with contextlib.suppress(ValueError):
        return ipaddress.ip_address(host).is_loopback
    return False


def _check_port_is_free(port: int) -> None:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind(("", port))
        except OSError as error:
            raise ConfigError(
                f"process 0 can't listen on port {port} of --coordinator: {error.strerror}",
                fix="another port, the same for all processes",
            ) from None


@contextlib.contextmanager
def _deadline(timeout_s: float, what: str) -> Iterator[None]:
    """Ends the process with an explanation if the body, stuck in JAX, takes too long."""
    arrived = threading.Event()
    start = time.monotonic()

    def watch() -> None:
        while not arrived.wait(min(30, timeout_s)):
            waited = time.monotonic() - start
            if waited >= timeout_s:
                error = ConfigError(
                    f"waited {timeout_s:g} s for {what}: not all of them arrived",
                    "each must be started with the same coordinator and number of processes, "
                    "and reach the coordinator over the network",
                    "the output of the processes that are missing",
                )
                print(f"error: {error}", file=sys.stderr, flush=True)
                os._exit(error.exit_code)
            print(f"waiting for {what}: {waited:.0f} s of {timeout_s:g} s", file=sys.stderr)

    thread = threading.Thread(target=watch, daemon=True)
    thread.start()
    try:
        yield
    finally:
        arrived.set()
        thread.join()


def _slurm_local_devices(environ: Mapping[str, str]) -> list[int] | None:
    """GPUs of this task, where JAX's rule (the one whose number is SLURM_LOCALID) is wrong."""
    visible = environ.get("CUDA_VISIBLE_DEVICES", "")
    if visible and "," not in visible:  # --gpus-per-task=1: each task's own GPU is its number 0
        return [0]
    one_task_per_node = environ.get("SLURM_STEP_NUM_NODES") == environ["SLURM_NTASKS"]
    num_gpus = int(environ.get("SLURM_GPUS_ON_NODE") or 0)
    return list(range(num_gpus)) if one_task_per_node and num_gpus > 1 else None


def _on_tpu_pod(environ: Mapping[str, str]) -> bool:
    workers = environ.get("TPU_PROCESS_ADDRESSES") or environ.get("TPU_WORKER_HOSTNAMES") or ""
    if workers:  # GKE
        return "," in workers or int(environ.get("MEGASCALE_NUM_SLICES") or 1) > 1
    has_chips = glob.glob("/dev/accel*") or glob.glob("/dev/vfio/[0-9]*")
    if not has_chips or not importlib.util.find_spec("libtpu") or "TPU_SKIP_MDS_QUERY" in environ:
        return False
    return has_tpu_metadata(environ.get("GCE_METADATA_IP", "metadata.google.internal"))


def has_tpu_metadata(server: str, timeout_s: float = 3) -> bool:
    """Whether a Compute Engine metadata server describes this machine as a TPU worker."""
    request = urllib.request.Request(
        f"http://{server}/computeMetadata/v1/instance/attributes/agent-worker-number",
        headers={"Metadata-Flavor": "Google"},
    )
    try:
        with urllib.request.urlopen(request, timeout=timeout_s) as response:
            return bool(response.status == 200)
    except OSError:
        return False
