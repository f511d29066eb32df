"""Connections to a pod's localhost. With the host's network stack that is the localhost of the pod's network namespace.

With gVisor's own it is inside the sandbox: by ``port-forward --stream`` runsc connects to a socket that we listen on, hands that
connection to the sandbox and ends; the sandbox copies, and hangs up on both sides once one has said its last (so it is no way to a
localhost that is also outside). With a runsc that has no such verb only what listens on the pod's address can be reached.
"""

from __future__ import annotations

import contextlib
import os
import secrets
import socket
from pathlib import Path

import anyio

from bridge.errors import HostError, RuntimeFailed, Unavailable
from bridge.host import namespaces, netdial
from bridge.host.process import Completed
from bridge.host.runtime_words import parse_log
from bridge.ports.runtime import SandboxSpec
from bridge_gvisor.host import GvisorHost

VERB = "port-forward"
_LOW_PORTS = Path("/proc/sys/net/ipv4/ip_unprivileged_port_start")
_NOBODY = ("connection refused", "was refused", "connection was aborted")


async def connect(host: GvisorHost, spec: SandboxSpec, dialer: netdial.Dialer, port: int) -> socket.socket:
    """A connected, non-blocking stream socket to ``port`` of the pod. Raises Unavailable when nobody listens, RuntimeFailed."""
    if host.runsc.settings.network == "host":
        return await dialer.dial(port)
    if VERB not in host.verbs:
        return await dialer.dial(port, addresses=spec.ips)
    path = host.context.run_root / "tty" / f"pf-{secrets.token_hex(8)}"
    listener = _listen(path)
    near: socket.socket | None = None
    try:
        done = await host.runsc.run(VERB, "--stream", str(path), spec.id, str(port), timeout=host.runsc.settings.timeouts.exec)
        with contextlib.suppress(BlockingIOError):
            near, _ = listener.accept()
        connection = _checked(host, done, near, port)
        near = None
        return connection
    finally:
        listener.close()
        if near is not None:
            near.close()
        with contextlib.suppress(FileNotFoundError):
            os.unlink(path)
        await anyio.lowlevel.checkpoint()


async def open_low_ports(netns: Path) -> None:
    """Let a sandbox that uses the host's stack bind ports below 1024 in its pod's own network namespace.

    Its process has no capability on the host, whoever asks inside; what else may bind there is in the pod. Raises HostError.
    """

    def write() -> None:
        try:
            _LOW_PORTS.write_text("0")
        except OSError as exc:
            raise HostError(f"can't write {_LOW_PORTS}: {exc.strerror}", errno=exc.errno) from exc

    await namespaces.run_in_network(netns, write)


def _checked(host: GvisorHost, done: Completed, near: socket.socket | None, port: int) -> socket.socket:
    said = parse_log(done.stderr.decode(errors="replace"))
    if done.returncode and any(word in line for line in said for word in _NOBODY):
        raise Unavailable(f"can't connect to port {port} of the pod's localhost (connection refused in the sandbox)")
    if done.returncode or near is None:
        raise _failed(host, done.returncode, said)
    near.setblocking(False)
    return near


def _failed(host: GvisorHost, code: int, said: tuple[str, ...]) -> RuntimeFailed:
    return host.runsc.failure(VERB, code, said or ("it did not connect",))


def _listen(path: Path) -> socket.socket:
    listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        listener.bind(str(path))
        os.chmod(path, 0o600)
        listener.listen(1)
    except OSError as exc:
        listener.close()
        raise HostError(f"can't listen on {path}: {exc.strerror}", errno=exc.errno) from exc
    return listener
