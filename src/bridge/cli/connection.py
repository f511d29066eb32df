"""How a verb reaches the server: which socket, and what to say when nobody answers there."""

from __future__ import annotations

import argparse
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import anyio
from grpclib.const import Status

from bridge.client import CriClient, CriError, connect
from bridge.config_files import load
from bridge.errors import Unavailable, Unsupported

DEFAULT_TIMEOUT = 30.0


def ask(arguments: argparse.Namespace, question: Callable[[CriClient], Awaitable[Any]], *, timeout: float = DEFAULT_TIMEOUT) -> Any:
    """What ``question`` returns, asked of the server that ``arguments`` point to, in an event loop of its own."""

    async def talk() -> Any:
        async with server(socket_of(arguments), timeout=arguments.timeout or timeout) as client:
            return await question(client)

    return anyio.run(talk)


def socket_of(arguments: argparse.Namespace) -> Path:
    """The socket given with ``--socket``, else the configured one."""
    given: Path | None = arguments.socket
    return given or load(arguments.config).server.socket


@asynccontextmanager
async def server(path: Path, *, timeout: float) -> AsyncIterator[CriClient]:
    """A connection to the server at ``path``. Raises Unavailable with what to do when none listens there."""
    try:
        async with connect(path, timeout=timeout) as client:
            yield client
    except CriError as exc:
        if older(exc):
            method = exc.message.rpartition("/")[2].strip('"')
            hint = "it is older than this command, or another runtime's; after an upgrade: systemctl restart cri-bridge"
            raise Unsupported(f"the server on {path} does not know {method}: {hint}") from exc
        if exc.code is not Status.UNAVAILABLE or not exc.message.startswith("no server answers"):
            raise
        hint = "start it (systemctl start cri-bridge, or cri-bridge serve), or name another socket with --socket"
        raise Unavailable(f"{exc.message}; {hint}") from exc


def older(error: CriError) -> bool:
    """Whether the server does not know the RPC at all: one of an earlier release, or one that speaks CRI only."""
    return error.code is Status.UNIMPLEMENTED and error.message.startswith(("unknown method", "unknown service"))
