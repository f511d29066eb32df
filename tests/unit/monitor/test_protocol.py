"""Frames survive any splitting; broken ones are refused without leaking descriptors; values survive the wire."""

from __future__ import annotations

import os
import struct
from pathlib import Path
from typing import Any

import pytest

from bridge import errors
from bridge.monitor.protocol import (
    MAX_FRAME,
    BadFrame,
    Decoder,
    Frame,
    LaunchFailed,
    encode,
    error_from_wire,
    error_to_wire,
    exit_from_wire,
    exit_to_wire,
    info_from_wire,
)
from bridge.ports.runtime import ExitStatus

MESSAGES: list[dict[str, Any]] = [
    {"id": 1, "op": "hello"},
    {},
    {"id": 2, "argv": ["runc", "--root", "/r\u00e9"], "n": None},
    {"x": "y" * 300},
]


def test_frames_come_out_the_same_however_the_bytes_are_split() -> None:
    stream = b"".join(encode(message) for message in MESSAGES)
    expected = [Frame(message) for message in MESSAGES]
    for at in range(len(stream) + 1):
        decoder = Decoder()
        assert decoder.feed(stream[:at]) + decoder.feed(stream[at:]) == expected
    decoder = Decoder()
    assert [frame for byte in stream for frame in decoder.feed(bytes([byte]))] == expected


def test_descriptors_go_to_the_frames_that_announced_them() -> None:
    stream = encode({"id": 1}, 2) + encode({"id": 2}) + encode({"id": 3}, 1)
    first = len(encode({"id": 1}, 2))
    for at in range(1, first + 1):
        decoder = Decoder()
        frames = decoder.feed(stream[:at], (10, 11)) + decoder.feed(stream[at:], (12,))
        assert [frame.fds for frame in frames] == [(10, 11), (), (12,)]


@pytest.mark.parametrize(
    ("data", "why"),
    [
        (struct.pack("!IB", MAX_FRAME + 1, 0), "frame of"),
        (struct.pack("!IB", 2, 9) + b"{}", "9 descriptors"),
        (struct.pack("!IB", 2, 1) + b"{}", "announced but not sent"),
        (struct.pack("!IB", 3, 0) + b"{x}", "not JSON"),
        (struct.pack("!IB", 2, 0) + b"[]", "not a JSON object"),
        (struct.pack("!IB", 2, 0) + b"\xff\xfe", "not JSON"),
    ],
)
def test_bad_frames_are_refused(data: bytes, why: str) -> None:
    with pytest.raises(BadFrame, match=why):
        Decoder().feed(data)


def test_a_refused_stream_gives_its_descriptors_back() -> None:
    reader, writer = os.pipe()
    decoder = Decoder()
    with pytest.raises(BadFrame, match="not announced"):
        decoder.feed(encode({"id": 1}), (reader, writer))
    decoder.close()
    for fd in (reader, writer):
        with pytest.raises(OSError, match="Bad file descriptor"):
            os.fstat(fd)


def test_a_bad_frame_after_a_good_one_gives_back_the_descriptors_of_both() -> None:
    reader, writer = os.pipe()
    decoder = Decoder()
    with pytest.raises(BadFrame):
        decoder.feed(encode({"id": 1}, 2) + struct.pack("!IB", 1, 0) + b"x", (reader, writer))
    decoder.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        os.fstat(reader)


def test_too_large_a_message_is_not_sent() -> None:
    with pytest.raises(errors.LimitExceeded):
        encode({"x": "y" * MAX_FRAME})


def test_exit_status_survives_the_wire_and_fields_of_the_future() -> None:
    status = ExitStatus(code=137, signal=9, oom_killed=True, at_ns=123, reason="x")
    assert exit_from_wire(exit_to_wire(status) | {"new": 1}) == status
    assert exit_from_wire({"code": 0}) == ExitStatus(0)


def test_task_info_survives_the_wire() -> None:
    info = info_from_wire({"id": "a", "kind": "container", "pid": 7, "log_path": "/l", "exit": {"code": 1}, "future": True})
    assert (info.id, info.pid, info.log_path, info.exit) == ("a", 7, Path("/l"), ExitStatus(1))


@pytest.mark.parametrize("cls", [errors.NotFound, errors.InUse, errors.IllegalTransition, errors.Unsupported, errors.HostError])
def test_errors_keep_their_class_and_words(cls: type[errors.BridgeError]) -> None:
    back = error_from_wire(error_to_wire(cls("no such thing")))
    assert type(back) is cls
    assert back.message == "no such thing"


def test_launch_failures_keep_code_and_tail() -> None:
    for code in (None, 1, -9):
        back = error_from_wire(error_to_wire(LaunchFailed(code, ["a", "b"])))
        assert isinstance(back, LaunchFailed)
        assert (back.exit_code, back.stderr_tail) == (code, ("a", "b"))


def test_invalid_request_names_its_field_after_the_wire() -> None:
    back = error_from_wire(error_to_wire(errors.InvalidRequest("must be text", field="task")))
    assert isinstance(back, errors.InvalidRequest)
    assert str(back) == "task: must be text"


def test_an_unknown_kind_is_a_host_error() -> None:
    assert isinstance(error_from_wire({"kind": "FromTheFuture", "message": "m"}), errors.HostError)
