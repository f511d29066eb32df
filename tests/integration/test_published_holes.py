"""Holes that were published of container runtimes and their servers, tried on this one, with runc and with crun.

The table in docs/security.md says what each was. What a pod can do is tried from inside one; what an image can do, by images
that are made for it; the modes of what the server writes are in ``test_file_modes``.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from pathlib import Path

import anyio
import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError
from bridge.testing.images import Entry, Layout, busybox_layer, directory, symlink, tar
from tests.integration.daemon_fixtures import handler, kubelet, node
from tests.integration.daemon_node import DaemonNode, Kubelet, namespaces

__all__ = ["handler", "kubelet", "node"]
pytestmark = pytest.mark.root
POD = pb.NamespaceMode.POD
BUSYBOX = Path("/bin/busybox")


async def image_with(kubelet: Kubelet, where: Path, name: str, entries: Sequence[Entry], **config: object) -> str:
    """Import busybox with a layer of ``entries`` on top; the image's name."""

    def write() -> None:
        with Layout(where / name) as layout:
            layout.image(f"localhost/{name}:latest", [busybox_layer(BUSYBOX), tar(entries)], config={"Cmd": ["sh"], **config})

    await run_sync(write)
    await kubelet.cri.admin.import_image(admin.ImportImageRequest(path=str(where / name)))
    return f"localhost/{name}:latest"


def path_to(place: Path) -> list[Entry]:
    """The directories of a host path, for an image in which a link to it leads somewhere."""
    return [directory(str(path).lstrip("/")) for path in (*reversed(place.parents), place) if path != Path("/")]


def mount(path: str, host: Path, **more: object) -> pb.Mount:
    return pb.Mount(container_path=path, host_path=str(host), **more)  # type: ignore[arg-type]


async def test_cve_2024_21626_no_descriptor_of_server_monitor_or_runtime_is_left_open(kubelet: Kubelet) -> None:
    """runc 1.1.11 leaked a directory of the host into containers and execs; so might whoever starts it."""
    pod = await kubelet.run(options=namespaces(pid=POD))
    container = await kubelet.started(pod, options=namespaces(pid=POD))
    assert (await kubelet.output(container, "ls /proc/$$/fd; :")).split() == ["0", "1", "2"]
    for pid in ((await kubelet.info(container))["pid"], (await kubelet.pod_info(pod))["pid"]):
        found = {fd: os.readlink(f"/proc/{pid}/fd/{fd}") for fd in os.listdir(f"/proc/{pid}/fd")}
        own = {fd for fd, target in found.items() if target.startswith("anon_inode:")}  # the pause process waits for signals by one
        assert set(found) - own == {"0", "1", "2"}, found
        assert os.readlink(f"/proc/{pid}/cwd") == "/"


async def test_cve_2024_21626_a_working_directory_among_descriptors_is_refused(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = await kubelet.run()
    for path in ("/proc/self/fd/7", "/proc/self/fd/7/../../..", "/proc/thread-self/fd/8", "/proc/1/task/1/fd", "//proc//self//fd"):
        with pytest.raises(CriError, match=r"working_dir.*descriptors") as refused:
            await kubelet.create(pod, working_dir=path)
        assert refused.value.code is Status.INVALID_ARGUMENT
    name = await image_with(kubelet, tmp_path, "working-dir", [directory("d")], WorkingDir="/proc/self/fd/8")
    with pytest.raises(CriError, match="descriptors"):
        await kubelet.create(pod, image=pb.ImageSpec(image=name))


async def test_cve_2019_5736_the_pause_binary_can_t_be_written_from_a_shared_pid_namespace(kubelet: Kubelet, node: DaemonNode) -> None:
    """A container overwrote the runtime's binary through /proc/PID/exe. The runtime's is its own matter; the pause binary is ours."""
    pause = node.root / "run" / "pause" / "pause"
    before = (pause.read_bytes(), pause.stat().st_mtime_ns)
    options = namespaces(pid=POD)
    config = kubelet.pod_config(options=options)
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.privileged = True
    pod = await kubelet.run(config=config)
    security = pb.LinuxContainerSecurityContext(namespace_options=options, privileged=True)
    container = await kubelet.started(pod, linux=pb.LinuxContainerConfig(security_context=security))
    assert await kubelet.output(container, "readlink /proc/1/exe") == "/pause"
    for attempt in (
        "echo x > /proc/1/exe",
        "echo x > /proc/1/root/pause",
        "rm -f /proc/1/root/pause",
        "cp /bin/busybox /proc/1/root/pause",
    ):
        assert (await kubelet.exec(container, attempt)).exit_code != 0, attempt
    assert (pause.read_bytes(), pause.stat().st_mtime_ns) == before
    assert stat.S_IMODE(pause.stat().st_mode) == 0o755


async def test_cve_2022_24769_and_2022_29162_inheritable_capabilities_are_empty(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    capability = pb.Capability(add_capabilities=["NET_RAW", "SYS_PTRACE"])
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), capabilities=capability)
    container = await kubelet.started(pod, linux=pb.LinuxContainerConfig(security_context=security))
    sets = "grep -h ^Cap /proc/1/status /proc/self/status"
    found = [line.split() for line in (await kubelet.output(container, sets)).splitlines()]
    assert [value for name, value in found if name == "CapInh:"] == ["0" * 16] * 2
    assert [value for name, value in found if name == "CapAmb:"] == ["0" * 16] * 2
    assert all(int(value, 16) for name, value in found if name == "CapEff:")


async def test_cve_2023_25173_supplementary_groups_come_from_the_image_and_the_request(kubelet: Kubelet, tmp_path: Path) -> None:
    groups = b"root:x:0:\nstaff:x:50:app\nsecret:x:60:other\n"
    passwd = b"root:x:0:0::/:/bin/sh\napp:x:1000:1000::/:/bin/sh\nother:x:1001:1001::/:/bin/sh\n"
    name = await image_with(kubelet, tmp_path, "groups", [Entry("etc/passwd", passwd), Entry("etc/group", groups)], User="app")
    pod = await kubelet.run()
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), supplemental_groups=[1234])
    container = await kubelet.started(pod, image=pb.ImageSpec(image=name), linux=pb.LinuxContainerConfig(security_context=security))
    found = await kubelet.output(container, "grep -E '^(Uid|Gid|Groups)' /proc/1/status /proc/self/status | sed 's/.*://'")
    lines = [line.split() for line in found.splitlines()]
    assert lines == [["1000"] * 4, ["1000"] * 4, ["50", "1000", "1234"]] * 2


async def test_cve_2024_40635_a_user_id_that_would_wrap_round_to_root_is_refused(kubelet: Kubelet, tmp_path: Path) -> None:
    pod = await kubelet.run()
    for number, user in enumerate(("4294967296", "4294967296:0", "1000:4294967296", "18446744073709551616", "-1", "2147483648")):
        name = await image_with(kubelet, tmp_path, f"overflow-{number}", [directory("d")], User=user)
        with pytest.raises(CriError) as refused:
            await kubelet.create(pod, image=pb.ImageSpec(image=name))
        assert refused.value.code is Status.INVALID_ARGUMENT, user


async def test_cve_2022_23648_volumes_of_an_image_copy_nothing_of_the_host(kubelet: Kubelet, tmp_path: Path) -> None:
    """An image's volume whose path was a link had host files copied into the container."""
    (tmp_path / "secret").write_text("host secret")
    entries = [symlink("leak", str(tmp_path)), symlink("deep", "../../../../../.."), directory("plain")]
    volumes: dict[str, object] = {"/leak": {}, f"/deep{tmp_path}": {}, "/../../etc": {}, "/plain": {}}
    name = await image_with(kubelet, tmp_path, "volumes", entries, Volumes=volumes)
    pod = await kubelet.run()
    container = await kubelet.started(pod, image=pb.ImageSpec(image=name))
    found = await kubelet.exec(container, f"cat /leak/secret /deep{tmp_path}/secret /plain/secret")
    assert found.exit_code != 0
    assert b"host secret" not in found.stdout
    assert await kubelet.output(container, "grep -c . /etc/passwd") == "3"


async def test_cve_2024_5154_links_in_an_image_don_t_lead_the_pods_files_out(kubelet: Kubelet, tmp_path: Path) -> None:
    """CRI-O wrote through a link of the image on the host. Mounted files must land inside, whatever the image has in their place."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "file").write_text("untouched")
    pod = await kubelet.run()
    inside = [*path_to(outside), Entry(f"{outside}/file".lstrip("/"), b"inside")]
    for number, link in enumerate(("etc", "etc/hosts", "etc/resolv.conf", "etc/hostname", "dev/shm")):
        target = str(outside if link in ("etc", "dev/shm") else outside / "file")
        name = await image_with(kubelet, tmp_path, f"links-{number}", [*inside, symlink(link, target)])
        container = await kubelet.started(pod, name=f"c{number}", image=pb.ImageSpec(image=name))
        assert "nameserver" in await kubelet.output(container, "cat /etc/resolv.conf"), link
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"file": "untouched"}
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {outside}" in line]


async def test_cve_2026_41579_and_2026_47766_and_2023_27561_images_with_linked_mount_points_are_refused(
    kubelet: Kubelet, tmp_path: Path
) -> None:
    """A runtime that isn't mended makes and removes files where the image's /dev leads, on the host."""
    outside = tmp_path / "outside"
    outside.mkdir()
    (outside / "ptmx").write_text("untouched")
    pod = await kubelet.run()
    for place in ("dev", "proc", "sys"):
        name = await image_with(kubelet, tmp_path, f"linked-{place}", [symlink(place, str(outside))])
        with pytest.raises(CriError, match=f"the image's /{place} must be a directory") as refused:
            await kubelet.started(pod, image=pb.ImageSpec(image=name))
        assert refused.value.code is Status.INVALID_ARGUMENT
    assert {path.name: path.read_text() for path in outside.iterdir()} == {"ptmx": "untouched"}


async def test_cve_2025_31133_masked_paths_are_masked_whatever_the_image_has_in_dev(kubelet: Kubelet, tmp_path: Path) -> None:
    """runc bound the container's /dev/null over masked files, and an image or volume could make that another file."""
    entries = [directory("dev"), symlink("dev/null", "/proc/sys/kernel/core_pattern"), symlink("dev/pts", "/proc/sys/kernel")]
    name = await image_with(kubelet, tmp_path, "dev-null", [*entries, symlink("dev/console", "/proc/sysrq-trigger")])
    pod = await kubelet.run()
    container = await kubelet.started(pod, image=pb.ImageSpec(image=name), tty=True)
    facts = await kubelet.output(container, "stat -c '%F %t:%T' /dev/null; grep -c . /proc/keys; grep ' /dev/console ' /proc/mounts")
    null, keys, console = facts.splitlines()
    assert null == "character special file 1:3"
    assert keys == "0"
    assert console.startswith("devpts ")


async def test_cve_2025_31133_what_a_masked_path_may_be(kubelet: Kubelet) -> None:
    pod = await kubelet.run()
    security = pb.LinuxContainerSecurityContext(namespace_options=namespaces(), masked_paths=["proc/kcore"])
    with pytest.raises(CriError, match=r"masked_paths\[0\]") as refused:
        await kubelet.create(pod, linux=pb.LinuxContainerConfig(security_context=security))
    assert refused.value.code is Status.INVALID_ARGUMENT


async def test_cve_2025_52881_and_2019_19921_and_2023_28642_nothing_is_mounted_over_proc(kubelet: Kubelet, tmp_path: Path) -> None:
    """Runtimes were led to write labels and sysctls into another file than that of /proc, by a mount or a link in its place."""
    pod = await kubelet.run()
    container = await kubelet.started(pod, mounts=[mount("/data", tmp_path)])
    kinds = "awk '$2 ~ \"^/proc\" {print $2, $3}' /proc/mounts"
    assert "/proc proc" in (await kubelet.output(container, kinds)).splitlines()
    for number, place in enumerate(("/proc/self/attr/exec", "/proc/sys/kernel/domainname", "/proc")):
        with pytest.raises(CriError, match=r"mounts\[1\]\.container_path"):
            await kubelet.create(pod, name=f"over{number}", mounts=[mount("/data", tmp_path), mount(place, tmp_path)])


async def test_cve_2021_30465_a_link_in_a_shared_volume_doesn_t_lead_the_next_mount_out(kubelet: Kubelet, tmp_path: Path) -> None:
    """A volume mounted inside another one, where that holds a link to the host. (The race itself is the runtime's.)"""
    first, second, outside = tmp_path / "first", tmp_path / "second", tmp_path / "outside"
    for path in (first, second, outside):
        path.mkdir()
    (second / "mark").write_text("second")
    (first / "inner").symlink_to(f"../../../../../../../../..{outside}")
    name = await image_with(kubelet, tmp_path, "shared", path_to(outside))
    pod = await kubelet.run()
    mounts = [mount("/data", first), mount("/data/inner", second)]
    container = await kubelet.started(pod, image=pb.ImageSpec(image=name), mounts=mounts)
    assert await kubelet.output(container, f"cat {outside}/mark") == "second"
    assert list(outside.iterdir()) == []
    assert not [line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f" {outside}" in line]


@pytest.mark.parametrize("stream", ["stdout", "stderr"])
async def test_cve_2022_1708_and_2022_31030_exec_output_is_bounded_in_memory(kubelet: Kubelet, node: DaemonNode, stream: str) -> None:
    """ExecSync kept all that a process wrote: 200 MiB of it must not grow the server by half of that."""
    assert node.process is not None
    pod = await kubelet.run()
    container = await kubelet.started(pod)
    redirect = "" if stream == "stdout" else " >&2"
    answer = await kubelet.exec(
        container,
        f"dd if=/dev/zero bs=1M count=200{redirect} 2>/dev/null" if stream == "stdout" else f"cat /dev/zero | head -c 209715200{redirect}",
    )
    assert answer.exit_code == 0
    assert len(getattr(answer, stream)) <= 16 << 20
    status = Path(f"/proc/{node.process.pid}/status").read_text()
    peak = next(int(line.split()[1]) for line in status.splitlines() if line.startswith("VmHWM"))
    assert peak < 250 << 10, f"{peak} KiB"


async def test_cve_2020_15257_sockets_are_files_that_only_root_may_use(kubelet: Kubelet, node: DaemonNode) -> None:
    """containerd's shims listened on abstract sockets, which every container in the host's network could reach."""
    pod = await kubelet.run(options=namespaces(network=pb.NamespaceMode.NODE))
    container = await kubelet.started(pod, options=namespaces(network=pb.NamespaceMode.NODE))
    listening = [
        line.split()[-1] for line in (await kubelet.output(container, "cat /proc/net/unix")).splitlines()[1:] if len(line.split()) > 7
    ]
    assert not [name for name in listening if name.startswith("@") and (node.name in name or "bridge" in name or str(node.root) in name)]
    assert node.process is not None
    for pid in (node.process.pid, node.monitor):
        inodes = {os.readlink(f"/proc/{pid}/fd/{fd}")[8:-1] for fd in os.listdir(f"/proc/{pid}/fd") if _is_socket(pid, fd)}
        own = [line.split() for line in Path(f"/proc/{pid}/net/unix").read_text().splitlines()[1:]]
        assert not [line for line in own if line[6] in inodes and len(line) > 7 and line[7].startswith("@")]
    assert stat.S_IMODE(node.monitor_socket.stat().st_mode) == 0o600
    assert stat.S_IMODE(node.socket.stat().st_mode) == 0o660


def _is_socket(pid: int, fd: str) -> bool:
    try:
        return os.readlink(f"/proc/{pid}/fd/{fd}").startswith("socket:[")
    except FileNotFoundError:
        return False


async def test_cve_2026_53488_labels_of_an_image_don_t_become_the_containers(kubelet: Kubelet, tmp_path: Path) -> None:
    """containerd gave a container its image's labels, and a part of it ran what one of them named."""
    labels = {
        "containerd.io/restart.logpath": "binary:///bin/sh",
        "io.kubernetes.cri.container-type": "sandbox",
        "org.systemd.property.X": "1",
    }
    name = await image_with(kubelet, tmp_path, "labels", [directory("d")], Labels=labels)
    pod = await kubelet.run()
    container = await kubelet.started(pod, image=pb.ImageSpec(image=name), labels={"own": "label"})
    assert (await kubelet.status(container)).labels == {"own": "label"}
    state = await kubelet.info(container)
    annotations = state["runtimeSpec"]["annotations"] if "runtimeSpec" in state else {}
    assert not set(labels) & set(annotations) - {"io.kubernetes.cri.container-type"}


async def test_cve_2024_3154_annotations_don_t_steer_the_runtime(kubelet: Kubelet, node: DaemonNode) -> None:
    """A pod's annotation became a property of its systemd unit, and one of those runs a command as root."""
    bad = {"org.systemd.property.SuccessAction": "'poweroff-force'", "run.oci.hooks.stderr": "/tmp/x", "run.oci.handler": "krun", "a": "b"}
    pod = await kubelet.run(config=kubelet.pod_config(annotations=bad))
    container = await kubelet.create(pod, annotations=bad)
    status = await kubelet.status(container)
    assert status.annotations == bad  # told as given
    (bundle,) = (node.root / "run" / "sandboxes").glob(f"*/containers/{container}")
    text = await anyio.Path(bundle / "config.json").read_text()
    assert '"a": "b"' in text or '"a":"b"' in text
    assert "org.systemd.property" not in text
    assert "run.oci." not in text
