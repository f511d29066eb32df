"""What a shim's log says when it matters, and how fifos are pinned."""

from __future__ import annotations

import os
from pathlib import Path

from bridge.shimv2.pins import FifoPins
from bridge.shimv2.shim import words


def test_grave_lines_of_any_format_are_quoted() -> None:
    text = """time="2026-01-01T00:00:00Z" level=info msg="starting signal loop" namespace=x pid=1
time="2026-01-01T00:00:01Z" level=error msg="no \\"such\\" thing" error="x"
{"level":"warning","msg":"json too","time":"x"}
panic: runtime error
"""
    assert words(text) == ('no \\"such\\" thing', "json too", "panic: runtime error")
    assert words('time="x" level=debug msg=quiet\n') == ()


def test_what_is_in_a_pinned_fifo_outlives_both_its_ends(tmp_path: Path) -> None:
    for name in ("stdout", "stderr"):
        os.mkfifo(tmp_path / name)
    before = set(os.listdir("/proc/self/fd"))
    pins = FifoPins()
    pins.open(tmp_path)
    pins.open(tmp_path)
    with open(tmp_path / "stdout", "wb", buffering=0) as writer:
        writer.write(b"last words")
    reader = os.open(tmp_path / "stdout", os.O_RDONLY | os.O_NONBLOCK)
    assert os.read(reader, 99) == b"last words"
    os.close(reader)
    pins.close()
    pins.close()
    absent = FifoPins()
    absent.open(tmp_path / "nowhere")
    assert set(os.listdir("/proc/self/fd")) == before
