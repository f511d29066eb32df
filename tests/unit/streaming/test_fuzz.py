"""The parsers of what clients send, with mutations of what real clients sent: seeded, and by atheris where it is installed."""

from __future__ import annotations

import importlib.util
import random
import subprocess
import sys
from pathlib import Path

import pytest

from tests.unit.streaming.fuzz_targets import TARGETS

RECORDED = Path(__file__).parent / "recorded"
ROUNDS = 10_000


def seeds(target: str) -> list[bytes]:
    """What a target is fed with in real life: heads for the one, what follows the upgrade for the others."""
    found = []
    for path in sorted(RECORDED.glob("*.client.bin")):
        head, _, rest = path.read_bytes().partition(b"\r\n\r\n")
        if target == "http":
            found.append(head + b"\r\n\r\n")
        elif ("websocket" in path.name) == (target == "websocket"):
            found.append(rest)
    return found


def mutated(data: bytes, source: random.Random, others: list[bytes]) -> bytes:
    """``data`` with a few faults: bits, lengths, cuts, repetitions, and parts of other inputs."""
    found = bytearray(data)
    for _ in range(source.choice((1, 1, 2, 4, 16))):
        place = source.randrange(len(found) + 1)
        match source.randrange(6):
            case 0 if place < len(found):
                found[place] ^= 1 << source.randrange(8)
            case 1:
                found[place : place + 1] = source.choice((b"\x00", b"\xff", b"\x7f", b"\x80"))
            case 2:
                found[place : place + source.randrange(1, 20)] = b""
            case 3:
                found[place:place] = source.randbytes(source.randrange(1, 9))
            case 4:
                found[place:place] = found[place : place + source.randrange(1, 60)] * source.randrange(1, 5)
            case _:
                other = source.choice(others)
                start = source.randrange(len(other))
                found[place:place] = other[start : start + source.randrange(1, 80)]
    return bytes(found)


@pytest.mark.parametrize("target", TARGETS)
def test_recorded_input_with_faults(target: str) -> None:
    source, known = random.Random(20260301), seeds(target)
    for data in known:
        TARGETS[target](data)
    for number in range(ROUNDS):
        data = mutated(source.choice(known), source, known)
        try:
            TARGETS[target](data)
        except Exception as exc:
            raise AssertionError(f"round {number}: {data!r}") from exc


@pytest.mark.parametrize("target", TARGETS)
def test_nonsense(target: str) -> None:
    source = random.Random(7)
    for _ in range(ROUNDS):
        TARGETS[target](source.randbytes(source.randrange(200)))


@pytest.mark.skipif(importlib.util.find_spec("atheris") is None, reason="atheris has no wheel for this machine")
@pytest.mark.parametrize("target", TARGETS)
def test_guided_by_coverage(target: str, tmp_path: Path) -> None:
    for number, data in enumerate(seeds(target)):
        (tmp_path / str(number)).write_bytes(data)
    command = [
        sys.executable,
        "-m",
        "tests.unit.streaming.fuzz_with_atheris",
        target,
        "-runs=4000",
        "-seed=1",
        "-max_len=4096",
        "-rss_limit_mb=1024",
    ]
    done = subprocess.run(
        [*command, str(tmp_path)], capture_output=True, text=True, cwd=Path(__file__).parents[3], timeout=100, env=environment()
    )
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-4000:]
    assert "Done 4000 runs" in done.stderr


def environment() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path), "PATH": "/usr/bin:/bin"}
