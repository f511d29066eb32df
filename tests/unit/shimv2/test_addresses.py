"""Where a shim listens: names of the abstract space as shims of different ages write them."""

from __future__ import annotations

import secrets
import socket
from contextlib import closing
from pathlib import Path

import pytest

from bridge.errors import InvalidRequest, ShimGone, Unsupported
from bridge.shimv2.addresses import dial, socket_name


def test_names() -> None:
    assert socket_name("unix:///run/s") == "/run/s"
    assert socket_name("unix://@abstract") == "\0abstract"
    assert socket_name("/containerd-shim/default/x/shim.sock") == "\0/containerd-shim/default/x/shim.sock"
    assert socket_name(Path("/run/s")) == "/run/s"
    with pytest.raises(Unsupported, match="not vsock"):
        socket_name("vsock://3:1")
    for bad in ("", "unix://", "unix:///" + "x" * 120):
        with pytest.raises(InvalidRequest):
            socket_name(bad)


@pytest.mark.parametrize("closing_zero", ["", "\0"])
async def test_an_abstract_name_with_and_without_the_zero_that_older_go_counts(closing_zero: str) -> None:
    address = f"/containerd-shim/{secrets.token_hex(8)}/shim.sock"
    with closing(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)) as listener:
        listener.bind(f"\0{address}{closing_zero}")
        listener.listen()
        with closing(await dial(address, timeout=5)) as dialled:
            assert not dialled.getblocking()
    with pytest.raises(ShimGone, match="no shim listens at /containerd-shim/"):
        await dial(address, timeout=5)


async def test_a_path_has_no_second_name(tmp_path: Path) -> None:
    with pytest.raises(ShimGone, match="No such file"):
        await dial(f"unix://{tmp_path}/s", timeout=5)
    with pytest.raises(ShimGone, match="No such file"):
        await dial(tmp_path / "s", timeout=5)
