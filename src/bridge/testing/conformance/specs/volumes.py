"""Volumes: directories and files of the host in containers."""

from __future__ import annotations

from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.node import IMAGE
from bridge.testing.conformance.stage import Stage


@spec("CRI Mount.host_path, container_path, readonly", quick=True)
async def volumes_both_ways(stage: Stage) -> None:
    """What the host writes to a volume its containers see, and the other way round; a read-only one can't be written"""
    pod = await stage.pod()
    directory = stage.node.shared_directory(pod)
    (directory / "from-host").write_text("hello")
    mounts = [
        pb.Mount(container_path="/data", host_path=str(directory)),
        pb.Mount(container_path="/fixed", host_path=str(directory), readonly=True),
    ]
    one = await stage.started(pod, name="one", mounts=mounts)
    two = await stage.started(pod, name="two", mounts=mounts[:1])
    assert await stage.output(one, "cat /data/from-host; echo back > /data/from-one") == "hello"
    assert (directory / "from-one").read_text() == "back\n"
    assert await stage.output(two, "cat /data/from-one") == "back"
    (directory / "late").write_text("late")
    assert await stage.output(one, "cat /fixed/late") == "late"
    assert (await stage.exec(one, "touch /fixed/x")).exit_code != 0, "a read-only volume was written"
    assert not (directory / "x").exists()


@spec("CRI Mount of a single file (kubelet: /etc/hosts, termination log)")
async def single_files(stage: Stage) -> None:
    """A file of the host is mounted over one of the image, and written through"""
    pod = await stage.pod()
    directory = stage.node.shared_directory(pod)
    for name in ("hosts", "termination"):
        (directory / name).write_text("192.0.2.1 somewhere\n")
    mounts = [
        pb.Mount(container_path="/etc/hosts", host_path=str(directory / "hosts")),
        pb.Mount(container_path="/dev/termination-log", host_path=str(directory / "termination")),
    ]
    container = await stage.started(pod, mounts=mounts)
    assert await stage.output(container, "cat /etc/hosts; echo why > /dev/termination-log") == "192.0.2.1 somewhere"
    assert (directory / "termination").read_text() == "why\n"


@spec("CRI Mount: links, modes and owners")
async def volume_files(stage: Stage) -> None:
    """Owners, modes, links and removals in a volume are the host's own"""
    pod = await stage.pod()
    directory = stage.node.shared_directory(pod)
    container = await stage.started(pod, mounts=[pb.Mount(container_path="/data", host_path=str(directory))])
    await stage.output(container, "cd /data; echo x > file; chmod 640 file; chown 1000:2000 file; ln -s file link; mkdir sub; mv file sub/")
    moved = (directory / "sub" / "file").stat()
    assert (moved.st_mode & 0o7777, moved.st_uid, moved.st_gid) == (0o640, 1000, 2000)
    assert (directory / "link").readlink().name == "file"
    await stage.output(container, "rm -r /data/sub /data/link")
    assert list(directory.iterdir()) == []


@spec("CRI Mount.image: an image as a volume")
async def image_volume(stage: Stage) -> None:
    """An image is mounted as a read-only volume"""
    pod = await stage.pod()
    mount = pb.Mount(container_path="/image", readonly=True, image=pb.ImageSpec(image=IMAGE))
    container = await stage.started(pod, mounts=[mount])
    assert await stage.output(container, "head -n 1 /image/etc/passwd") == "root:x:0:0:root:/root:/bin/sh"
    assert (await stage.exec(container, "touch /image/x")).exit_code != 0


@spec("CRI Mount.recursive_read_only; RuntimeHandlerFeatures.recursive_read_only_mounts")
async def recursively_read_only(stage: Stage) -> None:
    """A volume that is read-only with all below it can't be written"""
    pod = await stage.pod()
    directory = stage.node.shared_directory(pod)
    answer = await stage.cri.runtime.status(pb.StatusRequest())
    told = {each.name: each.features for each in answer.runtime_handlers}[stage.node.target.name]
    mount = pb.Mount(container_path="/data", host_path=str(directory), readonly=True, recursive_read_only=True)
    if told is None or not told.recursive_read_only_mounts:
        await stage.refused(stage.create(pod, mounts=[mount]), *set(Status) - {Status.OK, Status.DEADLINE_EXCEEDED})
        stage.note("Status says that it can't, and the request is refused")
        return
    container = await stage.started(pod, mounts=[mount])
    assert (await stage.exec(container, "touch /data/x")).exit_code != 0
    assert list(directory.iterdir()) == []
