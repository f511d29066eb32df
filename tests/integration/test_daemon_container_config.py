"""Corners of ContainerConfig on the real daemon: what runs, where, with which stdio, log and stop signal, and under which name."""

import secrets
import shutil
import socket
import stat
from pathlib import Path
from typing import Any

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.monitor.client import MonitorClient
from bridge.testing.images import Layout, busybox_layer
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, log_lines, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root

CREATED, RUNNING, EXITED = (pb.ContainerState[f"CONTAINER_{name}"] for name in ("CREATED", "RUNNING", "EXITED"))
NAMED, SILENT = "localhost/named:1", "localhost/silent:1"
USERS = {name: f"localhost/user-{number}:1" for number, name in enumerate(("nobody:wheel", "1234:5", "1234", "ghost", ":5"))}
SIGNALS = {"SIGNONSENSE": "localhost/nonsense:1", "37": "localhost/number:1"}


@pytest.fixture
async def images(kubelet: Kubelet, node: DaemonNode) -> None:
    """Images whose configs differ, once for the module."""
    if (await kubelet.cri.image.image_status(pb.ImageStatusRequest(image=pb.ImageSpec(image=NAMED)))).image is not None:
        return
    layer, path = await run_sync(busybox_layer, Path("/bin/busybox")), node.root / "config-layout"
    with Layout(path) as layout:
        layout.image(NAMED, [layer], config={"Entrypoint": ["echo", "entry"], "Cmd": ["cmd"], "User": "daemon", "WorkingDir": "/var"})
        layout.image(SILENT, [layer])
        for name, image in USERS.items():
            layout.image(image, [layer], config={"User": name})
        for name, image in SIGNALS.items():
            layout.image(image, [layer], config={"StopSignal": name})
    await kubelet.cri.admin.import_image(admin.ImportImageRequest(path=str(path)))
    await run_sync(shutil.rmtree, path)


async def refused(kubelet: Kubelet, pod: str, field: str, code: Status = Status.INVALID_ARGUMENT, **changes: Any) -> None:
    with pytest.raises(CriError) as caught:
        await kubelet.create(pod, **changes)
    assert (caught.value.code, field in caught.value.message) == (code, True), caught.value


async def test_what_the_image_and_the_request_say_to_run(kubelet: Kubelet, images: None) -> None:
    pod = await kubelet.run()
    for number, (command, args, says) in enumerate((
        ([], [], "entry cmd"),
        ([], ["a", "b c"], "entry a b c"),
        (["echo", "own"], [], "own"),
        (["echo"], ["own", "args"], "own args"),
        (["sh", "-c", "id -un; pwd; id -g"], [], "daemon\n/var\n1"),
    )):  # fmt: skip
        name = f"c{number}"
        await kubelet.started(pod, command, name, args=args, image=pb.ImageSpec(image=NAMED))
        lines = await kubelet.log(pod, name, until=lambda found, wanted=says: len(found) == len(wanted.split("\n")))
        assert lines == [f"stdout F {line}" for line in says.split("\n")]
    for name, identity in (("nobody:wheel", "65534 10"), ("1234:5", "1234 5"), ("1234", "1234 0"), (":5", "0 5")):
        container = await kubelet.create(pod, name=f"user-{name.replace(':', '-')}", image=pb.ImageSpec(image=USERS[name]))
        await kubelet.start(container)
        assert await kubelet.output(container, "echo $(id -u) $(id -g)") == identity, name
    await refused(kubelet, pod, "ghost", image=pb.ImageSpec(image=USERS["ghost"]))
    await refused(kubelet, pod, "config.command", command=[], image=pb.ImageSpec(image=SILENT))
    await refused(kubelet, pod, "config.command", command=["", "x"])
    await refused(kubelet, pod, "config.command", command=["a\0b"])


async def test_a_working_directory_is_made(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, working_dir="/not/there/yet")
    assert await kubelet.output(container, "readlink /proc/1/cwd") == "/not/there/yet"
    await refused(kubelet, pod, "config.working_dir", name="relative", working_dir="not/absolute")
    await refused(kubelet, pod, "config.working_dir", name="leaks", working_dir="/proc/self/fd/7")
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), readonly_rootfs=True)
    fixed = await kubelet.started(pod, name="fixed", working_dir="/made/first", linux=pb.LinuxContainerConfig(security_context=security))
    assert await kubelet.output(fixed, "readlink /proc/1/cwd; touch /x 2>&1 | grep -o Read-only") == "/made/first\nRead-only"
    await refused(kubelet, pod, "config.working_dir", name="file", working_dir="/etc/passwd/below")


@pytest.mark.parametrize(
    ("changes", "name", "told"),
    [
        ({"stop_signal": pb.Signal.SIGRTMINPLUS3}, "37", pb.Signal.SIGRTMINPLUS3),
        ({"image": pb.ImageSpec(image=SIGNALS["37"])}, "37", pb.Signal.SIGRTMINPLUS3),
        ({"image": pb.ImageSpec(image=SIGNALS["37"]), "stop_signal": pb.Signal.SIGINT}, "INT", pb.Signal.SIGINT),
        ({"image": pb.ImageSpec(image=SIGNALS["SIGNONSENSE"])}, "TERM", pb.Signal.SIGTERM),
    ],
)
async def test_whose_stop_signal(kubelet: Kubelet, images: None, changes: dict[str, Any], name: str, told: pb.Signal) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, f"trap 'echo stopped; exit 5' {name}; echo up; while :; do sleep 0.02; done", **changes)
    assert (await kubelet.status(container)).stop_signal is told
    await kubelet.log(pod)
    await kubelet.stop(container)
    assert ((await kubelet.status(container)).exit_code, await kubelet.log(pod)) == (5, ["stdout F up", "stdout F stopped"])
    await refused(kubelet, pod, "config.stop_signal", name="unknown", stop_signal=pb.Signal(200))


async def test_stdin_and_terminal_in_all_their_combinations(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    command = "test -t 0 && echo terminal; cat; echo over"
    for name, options, lines in (
        ("none", {}, ["over"]),
        ("once", {"stdin_once": True}, ["over"]),  # nothing to close, and no error
        ("stdin", {"stdin": True}, []),
        ("tty", {"tty": True}, ["terminal"]),
        ("tty-once", {"tty": True, "stdin_once": True}, ["terminal"]),
        ("tty-stdin", {"tty": True, "stdin": True}, ["terminal"]),
    ):
        container = await kubelet.started(pod, command, name, **options)
        found = await kubelet.log(pod, name, until=lambda found, wanted=lines: len(found) >= len(wanted))
        assert [line.removesuffix("\r") for line in found] == [f"stdout F {line}" for line in lines]
        if "over" in lines:
            assert (await kubelet.exited(container)).exit_code == 0
        else:
            assert (await kubelet.status(container)).state is RUNNING
            await kubelet.stop(container, 0)
    both = await kubelet.started(pod, "read a; echo first $a; read b; echo second $b", "both", tty=True, stdin=True, stdin_once=True)
    for number, text in enumerate((b"1\n", b"2\n"), 1):  # a terminal outlives the client that left
        await type_into(node, both, text, lambda number=number: kubelet.log(pod, "both", until=lambda found: len(found) >= 2 * number))
    assert (await kubelet.exited(both)).exit_code == 0
    said = [line.removesuffix("\r") for line in await kubelet.log(pod, "both")]
    assert {"stdout F first 1", "stdout F second 2"} <= set(said)


async def type_into(node: DaemonNode, container: str, text: bytes, until: Any) -> None:
    """Attach, type, wait and leave."""
    ours, theirs = socket.socketpair()
    with ours, theirs:
        async with MonitorClient.connect(node.monitor_socket) as monitor, anyio.create_task_group() as group:
            group.start_soon(_attach, monitor, container, theirs.fileno())
            ours.sendall(text)
            await until()
            ours.close()


async def _attach(monitor: MonitorClient, container: str, descriptor: int) -> None:
    await monitor.attach(container, stdin=descriptor, stdout=None, stderr=None)


async def test_where_the_log_is(kubelet: Kubelet, tmp_path: Path) -> None:
    directory = tmp_path / "not" / "made"
    pod = await kubelet.run(config=kubelet.pod_config(log_directory=str(directory)))
    container = await kubelet.started(pod, "echo said", "deep", log_path="deep/er/7.log")
    await kubelet.exited(container)
    path = directory / "deep" / "er" / "7.log"
    assert (await kubelet.status(container)).log_path == str(path)
    assert log_lines(path) == ["stdout F said"]
    assert [stat.S_IMODE(each.stat().st_mode) for each in (directory, path.parent, path)] == [0o755, 0o755, 0o640]
    silent = await kubelet.started(pod, "echo said; exit 6", "silent", log_path="")
    status = await kubelet.exited(silent)
    assert (status.exit_code, status.log_path) == (6, "")
    (directory / "link.log").symlink_to(tmp_path / "victim")
    linked = await kubelet.create(pod, "echo said", "link", log_path="link.log")
    with pytest.raises(CriError, match=r"link\.log: it is a symbolic link"):
        await kubelet.start(linked)
    assert not (tmp_path / "victim").exists()
    assert (await kubelet.status(linked)).state is EXITED
    for number, name in enumerate(("../out.log", "/etc/passwd", "a/../../out.log", "..", "a\0b")):
        await refused(kubelet, pod, "config.log_path", name=f"bad{number}", log_path=name)
    assert sorted(each.name for each in directory.iterdir()) == ["deep", "link.log"]
    for bad in ("relative/dir", "/a\0b"):
        with pytest.raises(CriError, match=r"config\.log_directory") as caught:
            await kubelet.run(config=kubelet.pod_config(log_directory=bad))
        assert caught.value.code is Status.INVALID_ARGUMENT
    quiet = await kubelet.run(config=kubelet.pod_config(log_directory=""))
    assert (await kubelet.status(await kubelet.create(quiet))).log_path == ""


async def test_labels_and_annotations_come_back_byte_for_byte(kubelet: Kubelet) -> None:
    odd = {"": "", " k\n": "\t\r\n ", "κλειδί": "\U0001f600\u2028\u202e\ufeff", "e\u0301": "é", "quote": '"\\${x}<&>', "big": "ä" * 131072}
    pod = await kubelet.run(labels=odd, annotations=odd)
    container = await kubelet.started(pod, labels=odd, annotations=odd)
    assert await kubelet.output(container, "echo runs") == "runs"
    runtime = kubelet.cri.runtime
    (listed,) = (await runtime.list_containers()).containers
    (pods,) = (await runtime.list_pod_sandbox()).items
    for shown in (await kubelet.status(container), listed, await kubelet.pod_status(pod), pods):
        assert (shown.labels, shown.annotations) == (odd, odd)
    found = await runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector={"e\u0301": "é"})))
    assert [each.id for each in found.containers] == [container]
    none = await runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(label_selector={"é": "é"})))
    assert none.containers == [], "another spelling is another key"


async def test_attempts_and_names(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    first = await kubelet.create(pod, "exit 3")
    assert await kubelet.create(pod, "exit 3") == first, "a retry"
    await refused(kubelet, pod, first, Status.ALREADY_EXISTS, command="exit 4")
    await kubelet.start(first)
    await kubelet.exited(first)
    await refused(kubelet, pod, first, Status.ALREADY_EXISTS, command="exit 3")
    second = await kubelet.started(pod, metadata=pb.ContainerMetadata(name="app", attempt=1))
    metadata = [(await kubelet.status(each)).metadata for each in (first, second)]
    assert metadata == [pb.ContainerMetadata(name="app", attempt=number) for number in (0, 1)]
    last = await kubelet.create(pod, metadata=pb.ContainerMetadata(name="app", attempt=2**32 - 1))
    assert (await kubelet.status(last)).metadata == pb.ContainerMetadata(name="app", attempt=2**32 - 1)
    await kubelet.remove(first)
    assert await kubelet.create(pod, "exit 3") not in (first, second)
    odd = await kubelet.create(pod, name="../a b/\n" + secrets.token_hex(2), log_path="odd.log")
    assert (await kubelet.status(odd)).state is CREATED, "a name is no path"
    await refused(kubelet, pod, "config.metadata.name", metadata=pb.ContainerMetadata())


async def test_a_container_that_never_started(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    made, kept = await kubelet.create(pod, name="made"), await kubelet.create(pod, name="kept")
    await kubelet.stop(made)
    assert (await kubelet.status(made)).state is CREATED, "there is nothing to stop"
    await kubelet.remove(made)
    with pytest.raises(CriError) as caught:
        await kubelet.status(made)
    assert caught.value.code is Status.NOT_FOUND
    await kubelet.stop_pod(pod)
    status = await kubelet.status(kept)
    assert (status.state, status.started_at, status.finished_at) == (CREATED, 0, 0)
    with pytest.raises(CriError, match="not ready") as caught:
        await kubelet.start(kept)
    assert caught.value.code is Status.FAILED_PRECONDITION
    await kubelet.remove(kept)
    assert (await kubelet.cri.runtime.list_containers()).containers == []
