"""The device that a command computes on, by its name."""

from __future__ import annotations

import re

import jax

from bitttt_jax.errors import ConfigError

_NAME = re.compile(r"(cpu|gpu|cuda|rocm|tpu)(?::(\d+))?")


def use_device(name: str) -> None:
    """Makes a device the one that computes; call it before anything is computed.

    The other platforms' devices are left alone: `cpu` takes no memory of a GPU.

    Args:
      name: `cpu`, `gpu` or `tpu`, with a number for another than the first, as in `gpu:1`; empty
        for JAX's choice.

    Raises:
      ConfigError: no such device here.
    """
    if not name:
        return
    found = _NAME.fullmatch(name)
    if not found:
        raise ConfigError(f"--device={name} names no device", fix="cpu, gpu, gpu:1, tpu, tpu:0 …")
    platform, index = found[1], int(found[2] or 0)
    before = jax.config.jax_platforms  # type: ignore[attr-defined]
    # The CPU stays at hand for what is read and written on it.
    jax.config.update("jax_platforms", platform if platform == "cpu" else f"{platform},cpu")
    try:
        devices = jax.devices(platform)
    except Exception as error:  # RuntimeError, and AssertionError from a plugin that isn't there
        reason = str(error).partition(" (set JAX_PLATFORMS")[0].rstrip(".")
        jax.config.update("jax_platforms", before or "")
        raise ConfigError(
            f"--device={name}: there is no such device here",
            f"{reason + '; ' if reason else ''}JAX has {_names(jax.devices())}",
            "another --device, or bitttt doctor, which says what to install",
        ) from None
    if index >= len(devices):
        raise ConfigError(f"--device={name}: there are only {_names(devices)}")
    jax.config.update("jax_default_device", devices[index])


def device_name(device: jax.Device) -> str:
    """As `use_device` takes it: `gpu:0`."""
    return f"{device.platform}:{device.id}"


def _names(devices: list[jax.Device]) -> str:
    return ", ".join(map(device_name, devices))
