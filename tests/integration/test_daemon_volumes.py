"""Volumes of the host on the real daemon: what is seen inside, what spreads, what is refused, and a mount that doesn't answer."""

from __future__ import annotations

import json
import os
import socket
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.host import mounts, syscalls
from tests.integration.daemon_fixtures import handler, kubelet, warm
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node
from tests.integration.silent_fuse import silent_mount

__all__ = ["handler", "kubelet"]
pytestmark = pytest.mark.root

PRIVATE = pb.MountPropagation.PROPAGATION_PRIVATE
HOST_TO_CONTAINER = pb.MountPropagation.PROPAGATION_HOST_TO_CONTAINER
BIDIRECTIONAL = pb.MountPropagation.PROPAGATION_BIDIRECTIONAL

VOLUME_TIMEOUT = 1.5


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server that soon gives up a path which does not answer, and gives pods little shared memory."""
    with daemon_node(runtime=[f"volume_timeout = {VOLUME_TIMEOUT}", f"shm_size = {32 << 20}"]) as made:
        anyio.run(warm, made)
        yield made


@contextmanager
def tmpfs(path: Path, propagation: int = 0) -> Iterator[Path]:
    """A file system of its own at ``path``, gone with all below it afterwards."""
    path.mkdir(exist_ok=True)
    syscalls.mount("tmpfs", path, "tmpfs")
    try:
        if propagation:
            syscalls.mount("", path, "", propagation)
        yield path
    finally:
        if path.is_mount():
            syscalls.umount(path, syscalls.MNT_DETACH)


def privileged() -> pb.LinuxContainerConfig:
    return pb.LinuxContainerConfig(security_context=pb.LinuxContainerSecurityContext(privileged=True))


async def privileged_pod(kubelet: Kubelet) -> str:
    config = kubelet.pod_config()
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.privileged = True
    return await kubelet.run(config=config)


async def test_what_a_host_path_can_be(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "dir").mkdir()
    (tmp_path / "dir" / "inner").write_text("inner")
    (tmp_path / "file").write_text("file")
    (tmp_path / "link").symlink_to("hop")
    (tmp_path / "hop").symlink_to("dir")
    server = socket.socket(socket.AF_UNIX)
    server.bind(str(tmp_path / "sock"))
    server.close()
    os.mknod(tmp_path / "null", stat.S_IFCHR | 0o666, os.makedev(1, 3))
    wanted = [
        pb.Mount("/v/dir", str(tmp_path / "dir")),
        pb.Mount("v/relative/../up", str(tmp_path / "dir")),
        pb.Mount("/v/link", str(tmp_path / "link")),
        pb.Mount("/v/file", str(tmp_path / "file"), readonly=True),
        pb.Mount("/v/sock", str(tmp_path / "sock")),
        pb.Mount("/v/null", str(tmp_path / "null")),
        pb.Mount("/v/missing", str(tmp_path / "new" / "deep")),
        pb.Mount("/v/ro", str(tmp_path / "dir"), readonly=True),
        pb.Mount("/v/still", str(tmp_path / "dir"), mount_options=["noexec", "nosuid", "nodev"]),
        pb.Mount("/v", str(tmp_path)),
        pb.Mount("/twice", str(tmp_path)),
        pb.Mount("/twice", str(tmp_path / "dir")),
    ]
    pod = await kubelet.run()
    container = await kubelet.started(pod, mounts=wanted)
    said = await kubelet.output(
        container,
        "cat /v/dir/inner /v/up/inner /v/link/inner /v/file; test -S /v/sock && echo socket; test -c /v/null && echo device;"
        "test -d /v/missing && echo made; touch /v/ro/x 2>&1; echo y > /v/file; touch /v/dir/written;"
        "cat /twice/inner; echo; grep -c ' /v/still .*noexec' /proc/self/mountinfo",
    )
    assert said.splitlines()[0] == "innerinnerinnerfilesocket"
    assert "device\nmade\n" in said
    assert said.count("Read-only file system") == 1
    assert said.endswith("inner\n1")
    assert (tmp_path / "dir" / "written").exists()
    assert (tmp_path / "file").read_text() == "file"
    assert stat.S_IMODE((tmp_path / "new" / "deep").stat().st_mode) == 0o755
    told = (await kubelet.status(container)).mounts
    assert [(each.container_path, each.host_path, each.readonly) for each in told] == [
        (each.container_path, each.host_path, each.readonly) for each in wanted
    ]


async def test_mounts_spread_as_asked(kubelet: Kubelet, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "shared", syscalls.MS_SHARED) as shared, tmpfs(tmp_path / "own", syscalls.MS_PRIVATE) as own:
        pod = await privileged_pod(kubelet)
        wanted = [pb.Mount("/private", str(shared)), pb.Mount("/slave", str(shared), propagation=HOST_TO_CONTAINER)]
        wanted.append(pb.Mount("/both", str(shared), propagation=BIDIRECTIONAL))
        for name in ("before", "after", "inside"):
            (shared / name).mkdir()
        container = await kubelet.started(pod, mounts=wanted, linux=privileged())
        with tmpfs(shared / "after"):
            (shared / "after" / "seen").touch()
            said = await kubelet.output(container, "for d in private slave both; do echo $d $(ls /$d/after); done")
            assert said.splitlines() == ["private", "slave seen", "both seen"]
        await kubelet.output(container, "mount -t tmpfs x /slave/before; mount -t tmpfs y /private/before; touch /slave/before/z")
        assert not (shared / "before").is_mount()
        await kubelet.output(container, "mount -t tmpfs z /both/inside && touch /both/inside/out")
        assert (shared / "inside" / "out").exists()
        assert await kubelet.output(container, "ls /slave/inside; ls /private/inside") == "out"
        syscalls.umount(shared / "inside", 0)
        assert await kubelet.output(container, "ls /both/inside /slave/inside | grep -c out || true") == "0"
        for propagation, words in ((HOST_TO_CONTAINER, "a shared or slave mount"), (BIDIRECTIONAL, "a shared mount")):
            with pytest.raises(CriError) as refused:
                await kubelet.create(pod, name="no", mounts=[pb.Mount("/a", str(own)), pb.Mount("/b", str(own), propagation=propagation)])
            assert refused.value.code is Status.INVALID_ARGUMENT
            assert "config.mounts[1].propagation" in str(refused.value)
            assert f"needs {words}, but {own} lies on {own}, which is private: make it one (mount --make-rshared {own})" in str(
                refused.value
            )
        syscalls.mount("", shared, "", syscalls.MS_SLAVE)
        await kubelet.create(pod, name="slave", mounts=[pb.Mount("/a", str(shared), propagation=HOST_TO_CONTAINER)])


async def test_read_only_all_the_way_down(kubelet: Kubelet, tmp_path: Path) -> None:
    with tmpfs(tmp_path / "vol") as volume, tmpfs(volume / "below"):
        (tmp_path / "file").write_text("text")
        pod = await kubelet.run()
        wanted = [
            pb.Mount("/ro", str(volume), readonly=True),
            pb.Mount("/rro", str(volume), readonly=True, recursive_read_only=True, mount_options=["noexec"]),
            pb.Mount("/file", str(tmp_path / "file"), readonly=True, recursive_read_only=True),
        ]
        container = await kubelet.started(pod, mounts=wanted)
        assert await kubelet.output(container, "touch /ro/below/x && ls /rro/below && cat /file") == "x\ntext"
        for place in ("/ro/x", "/rro/x", "/rro/below/x", "/rro/below/y", "/file"):
            said = await kubelet.exec(container, f"echo >> {place}")
            assert (said.exit_code != 0) is (place != "/ro/below/x"), place
            assert b"Read-only file system" in said.stderr
        assert (await kubelet.status(container)).mounts[1].recursive_read_only
        left = [each.target for each in mounts.read_mountinfo() if "/volumes/" in each.target and pod in each.target]
        assert left == [], "copies would keep the volume's device busy, and keep the host from removing a mount point in them"
        syscalls.umount(volume / "below", syscalls.MNT_DETACH)
        (volume / "below").rmdir()
        assert (await kubelet.exec(container, "cat /rro/below/x")).exit_code != 0, "nothing is below a mount point that is gone"
        (volume / "below").mkdir()
        syscalls.mount("tmpfs", volume / "below", "tmpfs")
        await kubelet.stop(container, 0)
        syscalls.umount(volume / "below", 0)
        handlers = (await kubelet.cri.runtime.status(pb.StatusRequest())).runtime_handlers
        assert {each.name: each.features.recursive_read_only_mounts for each in handlers if each.features} == {
            "runc": True,
            "crun": True,
            "": True,
        }


async def test_recursive_read_only_has_rules(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = await kubelet.run()
    cases: list[tuple[dict[str, Any], str]] = [
        ({}, "needs readonly"),
        ({"readonly": True, "propagation": HOST_TO_CONTAINER}, "needs PROPAGATION_PRIVATE"),
    ]
    for change, word in cases:
        with pytest.raises(CriError) as refused:
            await kubelet.create(pod, mounts=[pb.Mount("/rro", str(tmp_path), recursive_read_only=True, **change)])
        assert refused.value.code is Status.INVALID_ARGUMENT
        assert f"config.mounts[0].recursive_read_only: {word}" in str(refused.value)


async def test_what_never_ran_gives_its_copies_back(kubelet: Kubelet, tmp_path: Path) -> None:
    """A kubelet keeps a container that could not be started for a while, and unmounts its volumes meanwhile."""

    def mounted() -> list[str]:
        return [each.target for each in mounts.read_mountinfo() if f"{pod}/containers" in each.target]

    pod = await kubelet.run()
    wanted = [pb.Mount(container_path="/rro", host_path=str(tmp_path), readonly=True, recursive_read_only=True)]
    container = await kubelet.create(pod, mounts=wanted)
    assert any("/volumes/" in each for each in mounted())
    await kubelet.remove(container)
    assert not mounted()
    container = await kubelet.create(pod, ["/absent"], mounts=wanted)
    with pytest.raises(CriError, match="absent"):
        await kubelet.start(container)
    with anyio.fail_after(30):
        while mounted():
            await anyio.sleep(0.01)
    assert (await kubelet.status(container)).state is pb.ContainerState.CONTAINER_EXITED


def stuck_processes() -> list[str]:
    """Command lines of processes in uninterruptible sleep."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            with suppress(OSError):
                if (entry / "stat").read_text().rpartition(")")[2].split()[0] == "D":
                    found.append((entry / "cmdline").read_text())
    return found


async def test_a_volume_that_does_not_answer(kubelet: Kubelet, node: DaemonNode, tmp_path: Path) -> None:
    pod = await kubelet.run()
    with silent_mount(tmp_path / "dead") as dead:
        wanted = [pb.Mount("/fine", str(tmp_path)), pb.Mount("/dead", str(dead.target))]
        failures: list[CriError] = []

        async def create() -> None:
            with pytest.raises(CriError) as failure:
                await kubelet.create(pod, name="hangs", mounts=wanted)
            failures.append(failure.value)

        async with anyio.create_task_group() as group:
            group.start_soon(create)
            while not dead.asked.is_set():
                await anyio.sleep(0.01)
            began = anyio.current_time()
            container = await kubelet.started(pod, name="other", mounts=[pb.Mount("/fine", str(tmp_path))])
            assert await kubelet.output(container, "echo alive") == "alive"
            await kubelet.cri.runtime.list_containers()
            assert anyio.current_time() - began < VOLUME_TIMEOUT
            assert not failures
        [failure] = failures
        assert failure.code is Status.DEADLINE_EXCEEDED
        assert f"config.mounts[1].host_path: {dead.target} did not answer within {VOLUME_TIMEOUT:g} s" in str(failure)
        await create()  # known by now, and at once
        assert "an earlier look at it is still stuck" in str(failures[1])
        device = pb.Device(host_path=str(dead.target), container_path="/dev/x", permissions="r")
        with pytest.raises(CriError, match=r"config\.devices\[0\]\.host_path: .* an earlier look at it is still stuck"):
            await kubelet.create(pod, name="device", devices=[device])
        with pytest.raises(CriError, match=r"config\.mounts\[0\]\.container_path: only the host's own /dev can be mounted at /dev"):
            await kubelet.create(pod, name="dev", mounts=[pb.Mount("/dev", str(tmp_path))])
        info = (await kubelet.cri.runtime.status(pb.StatusRequest(verbose=True))).info
        assert json.loads(info["lookups"])["stuck"] == [str(dead.target)]
        dead.answers.set()
        while any("lookup_child" in line for line in stuck_processes()):
            await anyio.sleep(0.01)
        container = await kubelet.started(pod, name="hangs", mounts=wanted)
        assert await kubelet.output(container, "echo alive") == "alive"
        await kubelet.clean()


async def test_many_mounts(kubelet: Kubelet, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("x")
    pod = await kubelet.run()
    wanted = [pb.Mount(f"/many/{i}", str(tmp_path)) for i in range(500)]
    container = await kubelet.started(pod, mounts=wanted)
    assert await kubelet.output(container, "cat /many/*/file | wc -c; grep -c ' /many/' /proc/self/mountinfo") == "500\n500"


async def test_the_kernels_own_file_systems(kubelet: Kubelet) -> None:
    pod = await privileged_pod(kubelet)
    plain = await kubelet.started(pod, name="plain")
    strong = await kubelet.started(pod, name="strong", linux=privileged())  # second: runc makes the pod's sysfs read-only for all
    look = 'awk \'$2 == "/sys" || $2 == "/proc/sys" {print substr($4, 1, 2)}\' /proc/mounts'
    assert (await kubelet.output(plain, look)).split() == ["ro", "ro"]
    assert (await kubelet.output(strong, look)).split() == ["rw"]
    for container, access in ((plain, "ro"), (strong, "rw")):  # on cgroup v1 the directory of the hierarchies is a tmpfs
        hierarchies = (await kubelet.output(container, "awk '$3 ~ /^cgroup/ {print $4}' /proc/mounts")).splitlines()
        assert hierarchies
        assert all(options.split(",")[0] == access for options in hierarchies)
    mounted = await kubelet.output(plain, "df /dev/shm | tail -1 | awk '{print $2}'; grep ' /dev/shm ' /proc/mounts")
    assert mounted.startswith("32768\n")
    assert "nosuid,nodev,noexec" in mounted
