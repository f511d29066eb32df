"""What a container finds: environment, root file system, /dev, /proc."""

from __future__ import annotations

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import written
from bridge.testing.conformance.stage import Stage


@spec("CRI ContainerConfig.command, args, working_dir, envs", quick=True)
async def words_and_environment(stage: Stage) -> None:
    """Words, variables and the working directory reach the process as they are, with blanks, quotes and newlines"""
    pod = await stage.pod()
    odd = "a b\t\"c\" 'd' $e \\ é"
    envs = [pb.KeyValue(key="ODD", value=odd.encode()), pb.KeyValue(key="EMPTY", value=b""), pb.KeyValue(key="FROM_IMAGE", value=b"no")]
    script = 'for word in "$@"; do echo "<$word>"; done; echo "<$ODD> <${EMPTY-unset}> <$FROM_IMAGE>"; pwd; [ -d /opt/dir ] && echo made'
    container = await stage.started(pod, ["sh", "-c", script, "sh"], args=["one", odd, ""], envs=envs, working_dir="/opt/dir")
    assert (await stage.exited(container)).exit_code == 0
    text = written(await stage.log(pod, until=lambda lines: b"made" in written(lines))).decode()
    assert text == f"<one>\n<{odd}>\n<>\n<{odd}> <> <no>\n/opt/dir\nmade\n"


@spec("CRI LinuxContainerSecurityContext.readonly_rootfs", quick=True)
async def read_only_root(stage: Stage) -> None:
    """With a read-only root nothing of it can be changed, but what is mounted for writing can"""
    pod = await stage.pod()
    mount = pb.Mount(container_path="/data", host_path=str(stage.node.shared_directory(pod)))
    container = await stage.started(pod, security={"readonly_rootfs": True}, mounts=[mount])
    answer = await stage.exec(container, "touch /etc/new || touch /new")
    assert answer.exit_code != 0, "a file was made in a read-only root"
    assert b"ead-only" in answer.stderr, answer.stderr
    assert await stage.output(container, "echo x > /data/new && echo y > /dev/shm/new && cat /data/new /dev/shm/new") == "x\ny"


@spec("OCI image spec: a container's changes are its own", quick=True)
async def private_root(stage: Stage) -> None:
    """What a container writes is seen by no other of the same image, and stays as long as it runs"""
    pod = await stage.pod()
    one, two = await stage.started(pod, name="one"), await stage.started(pod, name="two")
    await stage.output(one, "echo mine > /etc/own; rm /etc/group; mkdir -p /deep/er && ln -s /etc/own /deep/er/link")
    assert await stage.output(one, "cat /deep/er/link; test -e /etc/group || echo removed") == "mine\nremoved"
    assert await stage.output(two, "test -e /etc/own || echo none; head -n 1 /etc/group") == "none\nroot:x:0:"


@spec("OCI runtime spec: default devices and file systems of Linux")
async def devices_and_proc(stage: Stage) -> None:
    """/dev, /proc, /sys and /dev/shm are what programs expect"""
    container = await stage.started(await stage.pod())
    script = "for name in null zero full random urandom tty; do test -c /dev/$name || echo no $name; done; head -c 3 /dev/zero | wc -c"
    assert await stage.output(container, script) == "3"
    assert (
        await stage.output(container, "echo x > /dev/null; echo y > /dev/shm/y; cat /dev/shm/y; test -d /proc/self/fd && echo proc")
        == "y\nproc"
    )
    assert (
        await stage.output(container, "test -d /sys/class && echo sys; test -e /dev/pts/ptmx -o -e /dev/ptmx && echo ptmx") == "sys\nptmx"
    )
    assert await stage.output(container, "ls -l /dev/stdout | grep -o '/proc/self/fd/1'") == "/proc/self/fd/1"


@spec("CRI LinuxContainerSecurityContext.masked_paths, readonly_paths")
async def hidden_paths(stage: Stage) -> None:
    """What the request masks can't be read, what it makes read-only can't be written"""
    security = {"masked_paths": ["/etc/passwd", "/usr"], "readonly_paths": ["/home"]}
    container = await stage.started(await stage.pod(), security=security)
    assert await stage.output(container, "cat /etc/passwd; ls /usr; echo nothing") == "nothing"
    assert (await stage.exec(container, "touch /home/x")).exit_code != 0
