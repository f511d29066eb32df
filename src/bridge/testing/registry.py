"""A real registry (Debian's docker-registry) on 127.0.0.1, for tests and benchmarks."""

from __future__ import annotations

import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from bridge.errors import HostError

REGISTRY = Path("/usr/bin/docker-registry")
_PAUSE = 0.02
_TRIES = 500


def free_port() -> int:
    """A port that was free a moment ago."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@contextmanager
def registry(directory: Path) -> Iterator[str]:
    """``127.0.0.1:port`` of a running, empty registry that keeps its data in ``directory``, which is made. Raises HostError."""
    port = free_port()
    directory.mkdir()
    (directory / "config.yml").write_text(
        f"version: 0.1\nlog: {{level: error, accesslog: {{disabled: true}}}}\nhttp: {{addr: '127.0.0.1:{port}'}}\n"
        f"storage: {{filesystem: {{rootdirectory: {directory}/data}}, delete: {{enabled: true}}}}\n"
    )
    process = subprocess.Popen([REGISTRY, "serve", directory / "config.yml"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    try:
        _wait(process, port)
        yield f"127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def _wait(process: subprocess.Popen[bytes], port: int) -> None:
    for _ in range(_TRIES):
        with socket.socket() as probe:
            if probe.connect_ex(("127.0.0.1", port)) == 0:
                return
        if process.poll() is not None:
            raise HostError("docker-registry ended at once")
        time.sleep(_PAUSE)  # it has no other sign of being ready
    raise HostError("docker-registry does not listen")
