"""The group that may use the socket."""

from __future__ import annotations

import grp
import os
import stat
from pathlib import Path

import pytest

from bridge.api import sockets
from bridge.errors import ConfigError


def test_the_socket_belongs_to_the_group(tmp_path: Path) -> None:
    own = grp.getgrgid(os.getgroups()[0] if os.getgroups() else os.getgid()).gr_name
    bound = sockets.bind(tmp_path / "s", mode=0o660, group=own)
    try:
        found = (tmp_path / "s").stat()
        assert grp.getgrgid(found.st_gid).gr_name == own
        assert stat.S_IMODE(found.st_mode) == 0o660
    finally:
        bound.close()


def test_an_unknown_group_is_the_configurations_fault(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"server\.socket_group: there is no group 'nobody-of-that-name'"):
        sockets.bind(tmp_path / "s", mode=0o660, group="nobody-of-that-name")
