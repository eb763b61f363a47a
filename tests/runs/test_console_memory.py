"""The memory grid: widths, compactness, levels."""

import pytest

from bitttt_jax.runs.console_memory import HostMemory, memory_lines

GIB = 2**30


def plain(lines):
    return ["".join(text for text, _ in line) for line in lines]


def hosts(count, devices=8):
    return [
        HostMemory(f"h{i}", tuple((40 + (7 * i + d) % 20) * GIB for d in range(devices)), 80 * GIB)
        for i in range(count)
    ]


@pytest.mark.parametrize("count, rows", [(8, 3), (32, 8), (64, 16)])
def test_rows_for_64_256_and_512_devices(count, rows):
    lines = plain(memory_lines(hosts(count), width=80))
    assert len(lines) == rows + 1
    for width in (40, 80, 200):
        assert max(map(len, plain(memory_lines(hosts(count), width=width)))) <= width


def test_beyond_512_devices_only_the_fullest_hosts():
    many = hosts(200)
    many[123] = HostMemory("h123", (79 * GIB,) * 8, 80 * GIB)
    lines = plain(memory_lines(many, width=80))
    assert lines[0].startswith("1600 devices by share used: under 50% 0, from 50%")
    assert "from 95% 8" in lines[0]
    assert "h123" in lines[1]
    assert lines[-1] == "fullest: h123:0, 79 GiB, 99%"
    assert len(lines) < 10


def test_every_device_is_counted_once_in_the_histogram():
    lines = plain(memory_lines(hosts(200), width=80))
    counts = [int(part.rsplit(" ", 1)[1]) for part in lines[0].split(": ")[1].split(", ")]
    assert sum(counts) == 1600


def test_levels_mark_devices_and_the_fullest_is_named(script):
    lines = memory_lines(script.HOSTS, width=200)
    assert [level for _, level in lines[0] if level] == ["high"] * 3 + ["full"]
    assert lines[-1] == [("fullest: host1:5, 77.9 GiB, 97%", "full")]


def test_glyphs_cover_the_range_in_both_alphabets():
    host = [HostMemory("h", tuple(i * GIB for i in range(9)), 8 * GIB)]
    assert plain(memory_lines(host, width=80))[0] == "h  ▁▂▃▄▅▆▇█ 0–8/8 GiB"
    ascii_line = plain(memory_lines(host, width=80, ascii_only=True))[0]
    assert ascii_line.startswith("h .:-=+*%#@ 0")


def test_one_device_is_one_line():
    host = HostMemory("h", (GIB,), 16 * GIB)
    assert plain(memory_lines([host], width=80)) == ["h   1/16 GiB"]
