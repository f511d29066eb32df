"""Container logs: everything, in the right stream and order, in the CRI's form."""

from __future__ import annotations

import hashlib

from grpclib.const import Status

from bridge._proto.runtime import v1 as pb
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.logs import Line, read, written
from bridge.testing.conformance.stage import Stage

_FORMAT = "CRI log format (kubelet: pkg/kubelet/kuberuntime/logs)"


async def _whole(stage: Stage, pod: str, name: str, size: int, stream: str = "stdout") -> list[Line]:
    return await stage.log(pod, name, until=lambda lines: len(written(lines, stream)) >= size)


@spec(_FORMAT, quick=True)
async def streams_are_told_apart(stage: Stage) -> None:
    """Stdout and stderr are logged whole, each as itself, with times that never go back"""
    pod = await stage.pod()
    container = await stage.started(
        pod, "i=0; while [ $i -lt 200 ]; do echo out $i; echo err $i >&2; i=$((i+1)); done; printf '\\n\\tend\\n'"
    )
    await stage.exited(container)
    lines = await stage.log(pod, until=lambda lines: b"\tend\n" in written(lines))
    assert written(lines) == b"".join(b"out %d\n" % number for number in range(200)) + b"\n\tend\n"
    assert written(lines, "stderr") == b"".join(b"err %d\n" % number for number in range(200))
    for stream in ("stdout", "stderr"):
        times = [line.time for line in lines if line.stream == stream]
        assert times == sorted(times)


@spec(_FORMAT + ": tag P for parts of a line", quick=True)
async def long_lines(stage: Stage) -> None:
    """Lines of 100 KiB come in parts that make the line again"""
    pod = await stage.pod()
    container = await stage.started(pod, "for c in a b; do head -c 102400 /dev/zero | tr '\\0' $c; echo; done; echo short")
    await stage.exited(container)
    lines = await _whole(stage, pod, "app", 2 * 102401 + 6)
    assert written(lines) == b"a" * 102400 + b"\n" + b"b" * 102400 + b"\nshort\n"
    assert all(len(line.text) <= 64 << 10 for line in lines), "a part is longer than the kubelet reads"
    assert not lines[0].whole


@spec(_FORMAT + "; conmon, containerd: drain before the exit is told")
async def last_words(stage: Stage) -> None:
    """What is written right before the end is in the log, without a newline too"""
    pod = await stage.pod()
    for number in range(5):
        name = f"quick{number}"
        container = await stage.started(pod, f"seq 1 20000; echo words on stderr >&2; printf 'the last {number}'", name=name)
        assert (await stage.exited(container)).exit_code == 0
        expected = b"".join(b"%d\n" % line for line in range(1, 20001)) + b"the last %d" % number
        lines = await _whole(stage, pod, name, len(expected))
        assert written(lines).rstrip(b"\n") == expected
        assert written(lines, "stderr") == b"words on stderr\n"


@spec(_FORMAT)
async def binary_output(stage: Stage) -> None:
    """A MiB of all byte values comes as it was written"""
    pod = await stage.pod()
    script = 'i=0; while [ $i -lt 256 ]; do printf "\\\\$(printf %o $i)"; i=$((i+1)); done > /tmp/all'
    grow = "for i in 1 2 3 4 5 6 7 8 9 10 11 12; do cat /tmp/all /tmp/all > /tmp/more; mv /tmp/more /tmp/all; done"
    container = await stage.started(pod, f"{script}; {grow}; cat /tmp/all; printf . >&2")
    assert (await stage.exited(container)).exit_code == 0
    expected = bytes(range(256)) * 4096
    got = written(await _whole(stage, pod, "app", len(expected)))
    assert (len(got), hashlib.sha256(got).hexdigest()) == (len(expected), hashlib.sha256(expected).hexdigest())


@spec("CRI ReopenContainerLog (kubelet rotates logs)", quick=True)
async def log_is_reopened(stage: Stage) -> None:
    """After a rotation the log goes on in a new file and nothing is lost or doubled"""
    pod = await stage.pod()
    container = await stage.started(pod, "i=0; while :; do echo $i; i=$((i+1)); sleep 0.01; done")
    await stage.log(pod, until=lambda lines: len(lines) > 5)
    path = stage.log_path(pod)
    rotated = [path.with_suffix(f".log.{number}") for number in range(3)]
    for old in rotated:
        path.rename(old)
        await stage.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container))
        await stage.log(pod, until=lambda lines: len(lines) > 5)
    await stage.stop(container, 0)
    numbers = [int(line.text) for each in (*rotated, path) for line in read(each)]
    assert numbers == list(range(len(numbers)))
    reopen = stage.cri.runtime.reopen_container_log(pb.ReopenContainerLogRequest(container_id=container))
    await stage.refused(reopen, Status.FAILED_PRECONDITION)


@spec("CRI ContainerConfig.log_path is optional")
async def no_log(stage: Stage) -> None:
    """A container without a log runs and may write as much as it likes"""
    pod = await stage.pod()
    container = await stage.started(pod, "seq 1 200000; exit 4", log_path="")
    assert (await stage.exited(container)).exit_code == 4
