"""Commands in a guest, and how they end with all that they forked."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import cast

import pytest
from bridge_gvisor import execs
from bridge_gvisor.execs import GvisorExec
from bridge_gvisor.host import GvisorHost

from bridge.errors import HostError, NotFound
from bridge.ports.runtime import ExecSpec


class Guest:
    """A runsc that knows its guest's processes, parents by pid, and ends those that it is told to."""

    settings = SimpleNamespace(timeouts=SimpleNamespace(kill=1.0))

    def __init__(self, parents: Mapping[int, int], *failures: Exception) -> None:
        self.parents = dict(parents)
        self.ended: list[int] = []
        self._failures = list(failures)

    async def processes(self, ident: str) -> Mapping[int, int]:
        if self._failures:
            raise self._failures.pop(0)
        return dict(self.parents)

    async def check(self, verb: str, flag: str, pid: str, ident: str, signal: str, *, timeout: float) -> bytes:
        assert (verb, flag, ident, signal) == ("kill", "--pid", "c1", "9")
        assert timeout > 0
        self.ended.append(int(pid))
        del self.parents[int(pid)]
        return b""


async def test_what_a_lost_server_executed_is_ended(tmp_path: Path) -> None:
    guest = Guest({1: 0, 2: 1, 7: 0, 8: 7, 9: 0})
    (tmp_path / "exec-aa.json").write_text("{}")
    (tmp_path / "exec-aa.guest").write_text("7")
    (tmp_path / "exec-bb.json").write_text("{}")  # whose launch was cut off
    (tmp_path / "config.json").write_text("{}")
    await execs.end_orphans(cast("GvisorHost", SimpleNamespace(runsc=guest)), "c1", tmp_path)
    assert guest.parents == {1: 0, 2: 1, 9: 0}, "with whom it had forked; the container's own go on"
    assert [path.name for path in tmp_path.iterdir()] == ["config.json"]


async def test_one_that_could_not_be_ended_is_found_again(tmp_path: Path) -> None:
    """By the next attempt, and by a server that comes after this one."""

    async def gone(_ident: str) -> None:
        raise NotFound("forgotten with its connection")

    guest = Guest({1: 0, 7: 1, 8: 7}, HostError("no descriptor"))
    host = SimpleNamespace(runsc=guest, monitor=SimpleNamespace(wait=gone, forget=gone))
    command = GvisorExec(cast("GvisorHost", host), "c1", ExecSpec("aa", {}), tmp_path)
    (tmp_path / "exec-aa.guest").write_text("7")
    with pytest.raises(HostError):
        await command.delete()
    assert (tmp_path / "exec-aa.guest").exists()
    await command.delete()
    assert (guest.ended, guest.parents, list(tmp_path.iterdir())) == ([8, 7], {1: 0}, []), "from below"
