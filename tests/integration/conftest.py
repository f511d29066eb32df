"""The leak audit of every integration test; suites with a server of their own audit that one more closely (daemon_fixtures)."""

from __future__ import annotations

import gc
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.testing.leaks import Scope, settle, snapshot
from tests.crash.nursery import nursery
from tests.integration.daemon_node import environment, forking


@pytest.fixture(scope="session", autouse=True)
def forked_servers() -> Iterator[None]:
    """Servers of nodes are forked by a process that has imported everything: most of a start would else be Python's imports.

    That the command itself starts one is shown where demo or conform has it started, where two servers want one socket, under the stand-in
    for a service manager, and by the conformance suite.
    """
    with nursery(environment()) as start, forking(start):
        yield


@pytest.fixture(autouse=True)
def nothing_is_left(tmp_path: Path) -> Iterator[None]:
    """No mount below the test's directory, no process of it or child of ours, no descriptor of ours outlives a test.

    Set up before a test's own fixtures, so it judges after they are gone. The files in a test's directory are pytest's to remove.
    """
    scope = Scope(roots=(tmp_path,), pids=(os.getpid(),))
    before = snapshot(scope, without=["file"])
    yield
    left = settle(scope, before, timeout=0.5)
    if left:  # a handle that was dropped may wait for the collector with its descriptor; to collect after each test takes too long
        gc.collect()
        left = settle(scope, before, timeout=10)
    assert not left, "left behind:\n" + "\n".join(left)
