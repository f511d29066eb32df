"""Pods in a user namespace of their own, on the real runtimes: who owns what on both sides, and that nothing is left."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tarfile
from pathlib import Path

import anyio
import pytest
from grpclib.const import Status

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from bridge.testing.images import Entry, Layout, busybox_layer, symlink, tar
from tests.integration.daemon_fixtures import handler, kubelet, node, own_node
from tests.integration.daemon_node import DaemonNode, Kubelet, log_lines

__all__ = ["handler", "kubelet", "node", "own_node"]
pytestmark = pytest.mark.root

CONTAINER, POD, NODE = pb.NamespaceMode.CONTAINER, pb.NamespaceMode.POD, pb.NamespaceMode.NODE
UID, GID, LENGTH = 100000, 300000, 65536
UIDS = [pb.IdMapping(host_id=UID, container_id=0, length=LENGTH)]
GIDS = [pb.IdMapping(host_id=GID, container_id=0, length=LENGTH)]
MANY = "localhost/many-layers:latest"
FILE_CAPABILITY = struct.pack("<IIIII", 0x02000001, 1 << 10, 0, 0, 0).decode()  # VFS_CAP_REVISION_2, effective; CAP_NET_BIND_SERVICE


def mapped(*, pid: pb.NamespaceMode = CONTAINER) -> pb.NamespaceOption:
    return pb.NamespaceOption(pid=pid, userns_options=pb.UserNamespace(mode=POD, uids=UIDS, gids=GIDS))


def owner(path: str | Path) -> tuple[int, int]:
    found = os.lstat(path)
    return found.st_uid, found.st_gid


async def import_many(node: DaemonNode) -> None:
    """An image of 122 layers, some of whose files belong to others than root."""
    layout = node.root / "many"
    if layout.exists():
        return
    layout.mkdir()
    files = [Entry("srv/app", type=tarfile.DIRTYPE, mode=0o750, uid=1234, gid=5678), Entry("srv/app/file", b"x", uid=1234, gid=5678)]
    files += [Entry("srv/far", b"x", uid=LENGTH + 1, gid=0), Entry("srv/su", b"x", mode=0o4755)]
    busybox, may_bind = Path("/bin/busybox").read_bytes(), {"SCHILY.xattr.security.capability": FILE_CAPABILITY}
    files += [Entry("bin/capable", busybox, mode=0o755, pax=may_bind), symlink("srv/grep", "/bin/capable")]
    layers = [busybox_layer(Path("/bin/busybox")), tar(files)]
    layers += [tar([Entry(f"var/{number}", b"", uid=number, gid=number)]) for number in range(120)]
    with Layout(layout) as image:
        image.image(MANY, layers, config={"Env": ["PATH=/usr/bin:/bin"], "User": "1234:5678"})
    async with connect(node.socket) as cri:
        await cri.admin.import_image(admin.ImportImageRequest(path=str(layout)))


async def test_owners_on_both_sides(kubelet: Kubelet, node: DaemonNode) -> None:
    null = owner("/dev/null")
    pod = await kubelet.run(options=mapped())
    write = "echo direct; echo again > /dev/stdout; echo err > /dev/stderr; touch /new /dev/shm/new; exec sleep 1000"
    container = await kubelet.started(pod, write, options=mapped())
    out = kubelet.output
    assert (await out(container, "cat /proc/self/uid_map")).split() == ["0", str(UID), str(LENGTH)]
    assert (await out(container, "cat /proc/self/gid_map")).split() == ["0", str(GID), str(LENGTH)]
    assert sorted(await kubelet.log(pod, until=lambda lines: len(lines) >= 3)) == ["stderr F err", "stdout F again", "stdout F direct"]
    ours = "/ /bin/busybox /new /dev /dev/shm /dev/shm/new /dev/pts/ptmx /etc/hosts /etc/hostname /etc/resolv.conf"
    inside = await out(container, f"stat -c %u:%g {ours}")
    assert set(inside.split()) == {"0:0"}
    assert await out(container, "chown 7:8 /new && stat -c %u:%g /new") == "7:8"
    upper, directory = node.root / "state/images/snapshots" / container / "upper", node.root / "run/sandboxes" / pod
    assert [owner(path) for path in (upper, upper / "new", directory / "shm/new", directory / "hosts")] == [
        (UID, GID),
        (UID + 7, GID + 8),
        (UID, GID),
        (UID, GID),
    ]
    info = await kubelet.info(container)
    assert owner(f"/proc/{info['pid']}") == (UID, GID), "the process is nobody on the host"
    await out(container, "echo 10.0.0.1 more >> /etc/hosts; echo x > /dev/stdout")
    assert owner("/dev/null") == null, "crun gives its standard streams away"
    assert len([line for line in Path("/proc/self/mountinfo").read_text().splitlines() if f"{container}/view" in line]) == 0


async def test_what_the_namespace_owns(kubelet: Kubelet) -> None:
    """Network, IPC and UTS namespaces belong to the user namespace, so that root in it may do there what root may."""
    config = kubelet.pod_config(options=mapped(pid=POD))
    assert config.linux is not None
    config.linux.sysctls = {"net.ipv4.ip_unprivileged_port_start": "7", "kernel.shmmax": "12345", "net.ipv4.ping_group_range": "0 9"}
    config.linux.sysctls |= {"fs.mqueue.msg_max": "9", "net.ipv4.conf.eth0.rp_filter": "2"}
    pod = await kubelet.run(config=config)
    admin_rights = pb.LinuxContainerSecurityContext(
        namespace_options=mapped(pid=POD),
        capabilities=pb.Capability(add_capabilities=["NET_ADMIN", "SYS_ADMIN"]),
        readonly_paths=["/proc/sys"],
    )
    container = await kubelet.started(pod, linux=pb.LinuxContainerConfig(security_context=admin_rights))
    out = kubelet.output
    read = "cat /proc/sys/net/ipv4/ip_unprivileged_port_start /proc/sys/kernel/shmmax /proc/sys/fs/mqueue/msg_max"
    assert (await out(container, f"{read} /proc/sys/net/ipv4/conf/eth0/rp_filter")).split() == ["7", "12345", "9", "2"]
    assert (await out(container, "cat /proc/sys/net/ipv4/ping_group_range")).split() == ["0", "9"], "in the pod's own ids"
    assert await out(container, "ip link set lo down && ip link set lo up && hostname other && hostname") == "other"
    assert socket.gethostname() != "other"
    assert "10.249." in await out(container, "ip -4 addr show eth0")
    mounts = {line.split()[1]: line.split()[2:4] for line in (await out(container, "cat /proc/mounts")).splitlines()}
    assert mounts["/sys"][0] == "sysfs"
    assert "ro" in mounts["/sys"][1].split(",")
    assert [mounts[place][0] for place in ("/dev/mqueue", "/dev/pts")] == ["mqueue", "devpts"]
    assert "/sys/fs/cgroup" in mounts
    assert "pause" in await out(container, "ps -o args"), "the pod's own PID namespace, with its idle process inside"
    assert await out(container, "ls /proc/sys/kernel/shmmax /proc/sys/net/ipv4") != ""
    assert (await kubelet.exec(container, "echo 1 > /proc/sys/net/ipv4/ip_forward")).exit_code != 0, "/proc/sys is read-only"
    pids = [(await kubelet.info(container))["pid"], (await kubelet.pod_info(pod))["pid"]]
    assert len({os.stat(f"/proc/{pid}/ns/user").st_ino for pid in pids} | {os.stat("/proc/self/ns/user").st_ino}) == 2


async def test_an_image_of_many_layers_and_owners(kubelet: Kubelet, node: DaemonNode) -> None:
    await import_many(node)
    pod = await kubelet.run(options=mapped())
    image = pb.ImageSpec(image=MANY)
    mine = await kubelet.started(pod, options=mapped(), image=image)
    out = kubelet.output
    assert await out(mine, "id -u; id -g") == "1234\n5678"
    assert await out(mine, "stat -c %u:%g /srv/app /srv/app/file /var/119 /srv/su") == "1234:5678\n1234:5678\n119:119\n0:0"
    assert await out(mine, "stat -c %u /srv/far") == "65534", "an id that the mapping does not reach is nobody's"
    assert "CapEff:\t0000000000000400" in await out(mine, "/srv/grep Cap /proc/self/status"), "file capabilities count"
    await out(mine, "echo more >> /srv/app/file; touch /srv/app/new")
    upper = node.root / "state/images/snapshots" / mine / "upper"
    assert owner(upper / "srv/app/file") == owner(upper / "srv/app/new") == (UID + 1234, GID + 5678)
    plain = await kubelet.started(await kubelet.run(), image=image)
    assert await out(plain, "stat -c %u:%g /srv/app/file; cat /srv/app/file") == "1234:5678\nx", "the layer is shared and as it was"
    context = pb.LinuxContainerSecurityContext(namespace_options=mapped(), run_as_user=pb.Int64Value(value=LENGTH))
    with pytest.raises(CriError, match=r"run_as_user: 65536 is beyond") as caught:
        await kubelet.create(pod, name="far", linux=pb.LinuxContainerConfig(security_context=context))
    assert caught.value.code is Status.INVALID_ARGUMENT


async def test_volumes_with_owners_of_their_own(kubelet: Kubelet, node: DaemonNode, tmp_path: Path) -> None:
    await import_many(node)
    tmp_path.chmod(0o700)
    data, plain, file = tmp_path / "data", tmp_path / "plain", tmp_path / "file"
    for directory in (data, data / "inner", plain):
        directory.mkdir()
    file.write_text("from the host")
    os.chown(data, 0, 0)
    os.chown(data / "inner", 1234, 5678)
    other = [pb.IdMapping(host_id=UID + 50, container_id=0, length=1), pb.IdMapping(host_id=UID + 70, container_id=1234, length=1)]
    groups = [pb.IdMapping(host_id=GID + 50, container_id=0, length=1), pb.IdMapping(host_id=GID + 70, container_id=5678, length=1)]
    mounts = [
        pb.Mount(container_path="/data", host_path=str(data), uid_mappings=UIDS, gid_mappings=GIDS),
        pb.Mount(container_path="/ro", host_path=str(data), readonly=True, uid_mappings=UIDS, gid_mappings=GIDS),
        pb.Mount(container_path="/rro", host_path=str(data), readonly=True, recursive_read_only=True, uid_mappings=UIDS, gid_mappings=GIDS),
        pb.Mount(container_path="/file", host_path=str(file), uid_mappings=UIDS, gid_mappings=GIDS),
        pb.Mount(container_path="/other", host_path=str(data), uid_mappings=other, gid_mappings=groups),
        pb.Mount(container_path="/plain", host_path=str(plain)),
        pb.Mount(container_path="/image", image=pb.ImageSpec(image=MANY), readonly=True),
        pb.Mount(
            container_path="/part",
            image=pb.ImageSpec(image=MANY),
            image_sub_path="srv/app/file",
            readonly=True,
            uid_mappings=UIDS,
            gid_mappings=GIDS,
        ),
    ]
    pod = await kubelet.run(options=mapped())
    container = await kubelet.started(pod, options=mapped(), mounts=mounts)
    out = kubelet.output
    seen = await out(container, "stat -c %u:%g /data /data/inner /ro /rro /file /other /other/inner /plain /image /image/srv/app /part")
    assert seen.split() == [
        *("0:0", "1234:5678", "0:0", "0:0", "0:0"),
        *("50:50", "70:70", "65534:65534", "0:0", "1234:5678", "1234:5678"),
    ]
    await out(container, "touch /data/new && chown 7:8 /data/new && echo changed > /file && mkdir /data/inner/deep")
    assert [owner(path) for path in (data / "new", data / "inner/deep", file)] == [(7, 8), (0, 0), (0, 0)]
    assert file.read_text() == "changed\n"
    for denied in ("/ro", "/rro", "/plain", "/image", "/image/srv/app"):
        assert (await kubelet.exec(container, f"touch {denied}/x")).exit_code != 0, denied
    assert await out(container, "cat /part") == "x"
    volume = pb.Mount(container_path="/p", host_path="/proc", uid_mappings=UIDS, gid_mappings=GIDS)
    with pytest.raises(CriError, match=r"config\.mounts\[0\]\.uid_mappings: the file system of /proc") as caught:
        await kubelet.create(pod, name="no", options=mapped(), mounts=[volume])
    assert caught.value.code is Status.UNIMPLEMENTED
    unmapped = await kubelet.started(await kubelet.run(), mounts=mounts[4:5])
    assert await out(unmapped, "stat -c %u:%g /other/inner") == f"{UID + 70}:{GID + 70}", "in a pod of the node's ids, too"


async def test_privileged_in_a_user_namespace_is_no_root_of_the_host(kubelet: Kubelet) -> None:
    config = kubelet.pod_config(options=mapped())
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.privileged = True
    pod = await kubelet.run(config=config)
    context = pb.LinuxContainerSecurityContext(namespace_options=mapped(), privileged=True)
    container = await kubelet.started(pod, linux=pb.LinuxContainerConfig(security_context=context))
    assert await kubelet.output(container, "mkdir -p /t && mount -t tmpfs none /t && echo mounted") == "mounted"
    for denied in ("echo 1 > /proc/sys/kernel/panic", "mknod /disk b 254 0"):
        assert (await kubelet.exec(container, denied)).exit_code != 0, denied


async def test_a_port_mapping_is_reachable(kubelet: Kubelet, node: DaemonNode) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    mapping = pb.PortMapping(container_port=80, host_port=port)
    pod = await kubelet.run(config=kubelet.pod_config(options=mapped(), port_mappings=[mapping]))
    await kubelet.started(pod, "exec httpd -f -p 80 -h /etc", options=mapped())
    with anyio.fail_after(30):
        while True:
            with contextlib.suppress(OSError, anyio.EndOfStream):
                async with await anyio.connect_tcp(node.subnets[0].replace("0/24", "1"), port) as stream:
                    await stream.send(b"GET /passwd HTTP/1.0\r\n\r\n")
                    assert b"200 OK" in await stream.receive()
                    return
            await anyio.sleep(0.05)


async def test_a_restart_takes_the_pod_over(own_node: DaemonNode) -> None:
    for name in own_node.handlers:
        async with connect(own_node.socket) as cri:
            kubelet = Kubelet(own_node, cri, name)
            pod = await kubelet.run(options=mapped(pid=POD))
            container = await kubelet.started(pod, options=mapped(pid=POD))
        own_node.kill()
        await own_node.restart()
        async with connect(own_node.socket) as cri:
            again = Kubelet(own_node, cri, name)
            again.configs = kubelet.configs
            assert (await again.output(container, "cat /proc/self/uid_map")).split()[1] == str(UID)
            later = await again.started(pod, name="later", options=mapped(pid=POD))
            assert await again.output(later, "echo x > /dev/stdout; stat -c %u /bin/busybox") == "x\n0"
            namespaces = (await again.pod_status(pod)).linux.namespaces.options  # type: ignore[union-attr]
            assert namespaces is not None
            assert namespaces.userns_options == mapped().userns_options
            await again.clean()


async def test_what_is_refused_and_what_status_promises(kubelet: Kubelet) -> None:
    promised = {each.name: each.features.user_namespaces for each in (await kubelet.cri.runtime.status()).runtime_handlers}  # type: ignore[union-attr]
    assert promised == {"": True, "runc": True, "crun": True}
    options = mapped()
    options.network = NODE
    with pytest.raises(CriError, match=r"namespace_options\.network") as caught:
        await kubelet.run(options=options)
    assert caught.value.code is Status.INVALID_ARGUMENT
    pod = await kubelet.run(options=mapped())
    other = mapped()
    other.userns_options = pb.UserNamespace(mode=NODE)
    with pytest.raises(CriError, match=r"userns_options: differs"):
        await kubelet.create(pod, options=other)
    container = await kubelet.started(pod, name="unset", options=pb.NamespaceOption(pid=CONTAINER))
    assert (await kubelet.output(container, "cat /proc/self/uid_map")).split()[1] == str(UID), "unset means the pod's"


async def test_the_hosts_null_device_stays_the_hosts(kubelet: Kubelet) -> None:
    """crun gives its standard streams to the user it starts; who owns the node's /dev/null could take it from everybody."""
    null, mode = owner("/dev/null"), os.stat("/dev/null").st_mode
    for options in (mapped(), pb.NamespaceOption(pid=CONTAINER)):
        context = pb.LinuxContainerSecurityContext(namespace_options=options, run_as_user=pb.Int64Value(value=1234))
        container = await kubelet.started(await kubelet.run(options=options), linux=pb.LinuxContainerConfig(security_context=context))
        await kubelet.exec(container, "chmod 0 /proc/self/fd/0; cat; true")
        assert (owner("/dev/null"), os.stat("/dev/null").st_mode) == (null, mode)


async def test_users_and_terminals(kubelet: Kubelet) -> None:
    pod = await kubelet.run(options=mapped())
    context = pb.LinuxContainerSecurityContext(
        namespace_options=mapped(), run_as_user=pb.Int64Value(value=4321), supplemental_groups=[88, 99]
    )
    linux = pb.LinuxContainerConfig(security_context=context)
    one = await kubelet.started(pod, linux=linux, working_dir="/made/here")
    assert await kubelet.output(one, "id -u; id -G; pwd") == "4321\n0 88 99\n/made/here"
    assert await kubelet.output(one, "stat -c %u:%g /etc/passwd /made/here; tail -n 1 /etc/passwd | cut -d: -f1") == "0:0\n0:0\n4321"
    await kubelet.started(pod, "tty; stat -c %u:%g $(tty); exec sleep 1000", name="tty", tty=True, linux=linux, log_path="tty.log")
    path = Path(kubelet.configs[pod].log_directory) / "tty.log"
    with anyio.fail_after(30):
        while len(lines := log_lines(path)) < 2:
            await anyio.sleep(0.02)
    assert [line.split()[-1] for line in lines] == ["/dev/pts/0", "4321:5"]
