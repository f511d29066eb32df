"""Modes and owners of all that the server, the monitor and the runtimes leave on the host while pods run.

CVE-2021-41103 (containerd): the directories of bundles and plugins let every user of the host through, who could then run a
set-user-id program of an image. CVE-2024-25621 (containerd): so did the directories of its state and of its CRI plugin.
"""

from __future__ import annotations

import os
import stat
import subprocess
from collections.abc import Iterable, Iterator
from pathlib import Path

import pytest
from anyio.to_thread import run_sync

from bridge._proto.runtime import v1 as pb
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

NOBODY = 65534
_TRY = 'while IFS= read -r path; do if [ -e "$path" ]; then echo "$path"; fi; done'


def tree(top: Path) -> Iterator[Path]:
    """All below ``top``, without what is mounted there."""
    for entry in sorted(top.iterdir()):
        yield entry
        if entry.is_dir() and not entry.is_symlink() and not os.path.ismount(entry):
            yield from tree(entry)


def reached_by_nobody(paths: Iterable[Path]) -> set[Path]:
    """Those of ``paths`` that a user without any rights can get at."""
    names = "".join(f"{path}\n" for path in paths)
    argv = ["/bin/busybox", "sh", "-c", _TRY]
    done = subprocess.run(
        argv, input=names, capture_output=True, text=True, check=True, cwd="/", user=NOBODY, group=NOBODY, extra_groups=[]
    )
    return {Path(name) for name in done.stdout.splitlines()}


async def pod_with_everything(kubelet: Kubelet, tmp_path: Path) -> str:
    """A pod with a process of its own and two containers, one with a terminal and stdin; a volume, a log, an exec."""
    options = namespaces(pid=pb.NamespaceMode.POD)
    pod = await kubelet.run(options=options)
    (tmp_path / "data").mkdir()
    mount = pb.Mount(container_path="/data", host_path=str(tmp_path / "data"), readonly=True, recursive_read_only=True)
    one = await kubelet.started(pod, "echo hello; exec sleep 1000", name="one", options=options, mounts=[mount])
    await kubelet.started(pod, name="two", options=options, tty=True, stdin=True)
    await kubelet.exec(one, "true")
    await kubelet.log(pod, "one")
    return pod


async def test_cve_2021_41103_and_2024_25621_no_user_of_the_host_gets_into_a_pods_files(
    kubelet: Kubelet, node: DaemonNode, tmp_path: Path
) -> None:
    await pod_with_everything(kubelet, tmp_path)
    node.root.chmod(0o755)  # as /run and /var/lib are
    try:
        mounted = [Path(line.split()[4]) for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        own = [path for path in mounted if node.root in path.parents]
        inside = [path / name for path in own for name in ("bin/busybox", "etc/passwd", "new", ".")]
        files = [path for top in ("run", "state") for path in tree(node.root / top)]
        reached = await run_sync(reached_by_nobody, [*own, *inside, *files])
    finally:
        node.root.chmod(0o700)
    run, state = node.root / "run", node.root / "state"
    # What lies directly in these can be seen, if not read; the pause binary and the runtimes' trial are for all to read.
    seen = {run, state, run / "sandboxes"}
    public = (run / "pause", state / "cache")
    assert {path for path in reached if path.parent not in seen and not any(top in path.parents for top in public)} == set()


async def test_nothing_of_the_servers_can_be_written_or_its_secrets_read_by_others(
    kubelet: Kubelet, node: DaemonNode, tmp_path: Path
) -> None:
    pod = await pod_with_everything(kubelet, tmp_path)
    images = node.root / "state" / "images"
    content = (images / "layers", images / "snapshots")  # an image's files have the image's modes, behind a directory of mode 0700
    paths = [path for top in ("run", "state") for path in [node.root / top, *tree(node.root / top)]]
    own = [
        path for path in paths if not path.is_symlink() and not os.path.ismount(path) and not any(top in path.parents for top in content)
    ]
    assert len(own) > 30
    wrong = [f"{path} {stat.filemode(path.stat().st_mode)}" for path in own if path.stat().st_mode & 0o022 and not _is_pods(path)]
    assert wrong == [f"{node.socket} srw-rw----"]
    assert [path for path in own if (path.stat().st_uid, path.stat().st_gid) != (0, 0)] == []
    modes = {
        path.name: oct(stat.S_IMODE(path.stat().st_mode)) for path in [*(node.root / "run").iterdir(), *(node.root / "state").iterdir()]
    }
    assert {name: mode for name, mode in modes.items() if name not in ("pause",)} == {
        "cri-bridge.sock": "0o660",
        "monitor.sock": "0o600",
        "monitor.sock.lock": "0o600",
        "monitor.log": "0o640",
        "tty": "0o700",
        "runtimes": "0o700",
        "sandboxes": "0o711",
        "cache": "0o711",
        "event-times": "0o600",
        "images": "0o700",
        "lock": "0o600",
        "state-copy.db": "0o600",
        "state-copy.db-shm": "0o600",
        "state-copy.db-wal": "0o600",
        "state.db": "0o600",
        "state.db-shm": "0o600",
        "state.db-wal": "0o600",
    }
    log = Path(kubelet.configs[pod].log_directory) / "one.log"
    assert oct(stat.S_IMODE(log.stat().st_mode)) == "0o640"


def _is_pods(path: Path) -> bool:
    """A pod's shared memory is for all of its users, behind the pod's directory."""
    return path.name == "shm"
