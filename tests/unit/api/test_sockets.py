"""Whose socket may be replaced, and who may connect."""

from __future__ import annotations

import os
import socket
import stat
from pathlib import Path

import pytest

from bridge import errors
from bridge._proto.runtime import v1 as pb
from bridge.api import sockets
from bridge.api.server import GrpcServer
from bridge.client import CriError, connect


def test_parents_are_made_and_the_mode_is_set(tmp_path: Path) -> None:
    path = tmp_path / "a" / "b" / "cri.sock"
    bound = sockets.bind(path, mode=0o660)
    assert stat.S_IMODE(path.stat().st_mode) == 0o660
    bound.close()
    assert not path.exists()
    bound.close()


def test_a_dead_servers_socket_is_replaced(tmp_path: Path) -> None:
    path = tmp_path / "cri.sock"
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(os.fspath(path))
    bound = sockets.bind(path, mode=0o600)
    bound.close()


@pytest.mark.parametrize("backlog", [0, 5])
def test_a_living_servers_socket_is_not(tmp_path: Path, backlog: int) -> None:
    path = tmp_path / "cri.sock"
    with socket.socket(socket.AF_UNIX) as alive, socket.socket(socket.AF_UNIX) as first:
        alive.bind(os.fspath(path))
        alive.listen(backlog)
        first.connect(os.fspath(path))  # with a backlog of 0 its queue is now full
        with pytest.raises(errors.AlreadyExists, match="another server answers"):
            sockets.bind(path, mode=0o600)
    assert path.exists()


def test_other_files_are_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "cri.sock"
    path.write_text("precious")
    with pytest.raises(errors.ConfigError, match="not a socket"):
        sockets.bind(path, mode=0o600)
    assert path.read_text() == "precious"


def test_a_successors_socket_is_not_removed(tmp_path: Path) -> None:
    path = tmp_path / "cri.sock"
    old = sockets.bind(path, mode=0o600)
    path.rename(tmp_path / "moved")  # keeps the inode in use, so that it can't be given to the next one
    new = sockets.bind(path, mode=0o600)
    old.close()
    assert path.exists()
    new.close()
    assert not path.exists()


def test_impossible_paths(tmp_path: Path) -> None:
    with pytest.raises(errors.ConfigError, match="not absolute"):
        sockets.bind(Path("cri.sock"), mode=0o600)
    with pytest.raises(errors.ConfigError, match="107 bytes"):
        sockets.bind(Path("/tmp") / ("x" * 104), mode=0o600)
    (tmp_path / "file").write_text("")
    with pytest.raises(errors.HostError, match="can't bind"):
        sockets.bind(tmp_path / "file" / "cri.sock", mode=0o600)


async def test_two_servers_one_socket(tmp_path: Path) -> None:
    path = tmp_path / "cri.sock"
    async with GrpcServer([pb.ImageServiceBase()]) as first, GrpcServer([pb.ImageServiceBase()]) as second:
        await first.listen(path)
        with pytest.raises(errors.AlreadyExists):
            await second.listen(path)
        await first.close(grace=0)
        await second.listen(path)
        async with connect(path) as cri:
            with pytest.raises(CriError, match="UNIMPLEMENTED"):
                await cri.image.list_images()
