"""What a service manager is told over its socket, and what it hands back."""

from __future__ import annotations

import errno
import os
import socket
import subprocess
import sys
from pathlib import Path

import pytest

import bridge
from bridge.host.service_manager import ServiceManager, reloading

KEEPER = """
import os, sys
from bridge.host.service_manager import ServiceManager
os.environ["LISTEN_PID"] = str(os.getpid())
manager = ServiceManager.of(os.environ)
told = {name: [os.read(fd, 9).decode() for fd in fds] for name, fds in manager.kept.items()}
inherited = [os.get_inheritable(fd) for fds in manager.kept.values() for fd in fds]
print(told, manager.capacity, inherited, [name for name in os.environ if name.startswith(("LISTEN", "NOTIFY", "FDSTORE"))])
"""


@pytest.mark.parametrize("abstract", [False, True])
def test_it_is_told_with_descriptors(tmp_path: Path, abstract: bool) -> None:
    name = f"@cri-bridge-test-{os.getpid()}" if abstract else str(tmp_path / "notify")
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as notify:
        notify.bind("\0" + name[1:] if abstract else name)
        environment = {"NOTIFY_SOCKET": name, "OTHER": "stays"}
        manager = ServiceManager.of(environment)
        assert environment == {"OTHER": "stays"}
        reader, writer = os.pipe()
        assert manager.send(["FDSTORE=1", "FDNAME=x"], [reader])
        message, fds, _, _ = socket.recv_fds(notify, 256, 8)
        assert message == b"FDSTORE=1\nFDNAME=x"
        os.write(writer, b"through")
        assert os.read(fds[0], 16) == b"through"
        manager.announce(*reloading())
        assert notify.recv(256).startswith(b"RELOADING=1\nMONOTONIC_USEC=")
    for fd in (reader, writer, *fds):
        os.close(fd)


def test_who_is_not_there_costs_a_line_in_the_log(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    ServiceManager.of({"NOTIFY_SOCKET": str(tmp_path / "gone")}).announce("READY=1")
    assert "can't be told READY=1" in caplog.text
    caplog.clear()
    ServiceManager.of({}).announce("READY=1")
    assert not caplog.text


def test_no_descriptor_left_costs_a_line_in_the_log(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def none_left(*_args: object) -> socket.socket:
        raise OSError(errno.EMFILE, "Too many open files")

    monkeypatch.setattr(socket, "socket", none_left)
    ServiceManager.of({"NOTIFY_SOCKET": "/run/notify"}).announce("READY=1")
    assert "can't be told READY=1: [Errno 24] Too many open files" in caplog.text


def test_what_it_kept_is_found_by_name(tmp_path: Path) -> None:
    files = []
    for content in ("one", "two", "three"):
        (tmp_path / content).write_text(content)
        files.append(os.open(tmp_path / content, os.O_RDONLY))
    source = str(Path(bridge.__file__).parent.parent)
    environment = {
        **os.environ,
        "PYTHONPATH": source,
        "LISTEN_FDS": "3",
        "LISTEN_FDNAMES": "a.stdout:b:a.stdout",
        "FDSTORE": "64",
        "NOTIFY_SOCKET": "/x",
    }
    # As a service manager hands them over: at 3 and above, which Python's own subprocess can't place.
    script = f"import os\nfor at, fd in enumerate({files}): os.dup2(fd, 100 + at)\nfor at in range(3): os.dup2(100 + at, 3 + at)\n"
    script += f"os.execv({sys.executable!r}, [{sys.executable!r}, '-c', {KEEPER!r}])"
    done = subprocess.run([sys.executable, "-c", script], env=environment, pass_fds=files, capture_output=True, text=True, timeout=60)
    for fd in files:
        os.close(fd)
    assert done.stdout.strip() == "{'a.stdout': ['one', 'three'], 'b': ['two']} 64 [False, False, False] []", done.stderr


def test_descriptors_for_another_process_are_left_alone() -> None:
    assert ServiceManager.of({"LISTEN_FDS": "3", "LISTEN_PID": "1", "LISTEN_FDNAMES": "a:b:c"}).kept == {}
