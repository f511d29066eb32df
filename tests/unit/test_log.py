"""One parsable line a record, with the fields of the task that logged it."""

from __future__ import annotations

import logging
import sys

import anyio
import pytest

from bridge import log
from bridge.log import LogfmtFormatter, context, quote


def line(message: str, *, exc_info: bool = False) -> str:
    record = logging.LogRecord("bridge.test", logging.INFO, __file__, 1, message, (), sys.exc_info() if exc_info else None)
    return LogfmtFormatter().format(record)


@pytest.mark.parametrize(
    ("value", "text"),
    [
        ("plain", "plain"),
        ("", '""'),
        ("two words", '"two words"'),
        ('a"b', r'"a\"b"'),
        ("a=b", '"a=b"'),
        ("back\\slash", r'"back\\slash"'),
        ("two\nlines", r'"two\nlines"'),
        ("bell\x07", r'"bell\x07"'),
        ("esc\x1b[31m", r'"esc\x1b[31m"'),
        ("nul\x00", r'"nul\x00"'),
        ("next\x85line\u2028end", r'"next\x85line\u2028end"'),
        ("grün", "grün"),
    ],
)
def test_quoting(value: str, text: str) -> None:
    assert quote(value) == text


def test_a_record_is_one_line_with_the_bound_fields() -> None:
    with context(pod="p1", request="r 1"):
        text = line("two\nlines")
    assert text.endswith(r'level=info logger=bridge.test msg="two\nlines" pod=p1 request="r 1"')
    assert len(text.splitlines()) == 1


def test_a_traceback_stays_on_the_line() -> None:
    try:
        raise ValueError("no\nway")
    except ValueError:
        text = line("failed", exc_info=True)
    assert len(text.splitlines()) == 1
    assert r"ValueError: no\nway" in text


def test_fields_nest_and_end_with_their_block() -> None:
    with context(pod="a"):
        with context(container="c", pod="b"):
            assert dict(log.current()) == {"pod": "b", "container": "c"}
        assert dict(log.current()) == {"pod": "a"}
    assert dict(log.current()) == {}


async def test_a_child_task_inherits_and_does_not_leak_back() -> None:
    seen: list[dict[str, str]] = []

    async def child() -> None:
        with context(container="c"):
            await anyio.sleep(0)
            seen.append(dict(log.current()))

    with context(pod="p"):
        async with anyio.create_task_group() as group:
            group.start_soon(child)
        assert dict(log.current()) == {"pod": "p"}
    assert seen == [{"pod": "p", "container": "c"}]


def test_setup_logs_to_stderr_once(capsys: pytest.CaptureFixture[str]) -> None:
    logger = logging.getLogger("bridge")
    before = (logger.handlers[:], logger.level, logger.propagate)
    try:
        log.setup("warning")
        log.setup("warning")
        log.get("test").info("quiet")
        log.get("test").warning("loud")
    finally:
        logger.handlers[:], logger.propagate = before[0], before[2]
        logger.setLevel(before[1])
    assert capsys.readouterr().err.count("msg=loud") == 1


def test_names() -> None:
    assert log.get("core").name == "bridge.core"
    assert log.get("bridge.core").name == "bridge.core"
    assert log.get("bridge_runc").name == "bridge_runc"
