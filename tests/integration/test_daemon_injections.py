"""What operators and device vendors add to containers, on real runtimes: devices, CDI, hooks.d, annotations, base specs."""

from __future__ import annotations

import json
import os
import signal
import stat
from collections.abc import AsyncIterator, Iterator, Mapping
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge._proto.runtime import v1 as pb
from bridge.client import CriError, connect
from tests.conftest import LeakAudit
from tests.integration.daemon_fixtures import handler
from tests.integration.daemon_node import DaemonNode, Kubelet, daemon_node, namespaces

__all__ = ["handler"]
pytestmark = pytest.mark.root

_NOTE = '#!/bin/sh\ncat > /dev/null\necho "$1 $MARK" >> LOG\n'
_FAIL = "#!/bin/sh\necho the probe of the hook failed >&2\nexit 3\n"
_PRECREATE = '#!/bin/sh\nsed "s/PLACEHOLDER/by precreate/"\n'
_BROKEN_PRECREATE = "#!/bin/sh\ncat > /dev/null\necho no licence >&2\nexit 4\n"
_STAGES = ("prestart", "createRuntime", "createContainer", "startContainer", "poststart", "poststop")
_WANTS_HOOKS = {"example.com/hooks": "yes"}
_BASE = {
    "process": {"rlimits": [{"type": "RLIMIT_CORE", "soft": 7168, "hard": 7168}], "env": ["FROM_BASE=1", "IN_BOTH=base"]},
    "mounts": [{"destination": "/scratch", "type": "tmpfs", "source": "tmpfs", "options": ["size=64k"]}],
    "linux": {"resources": {"devices": [{"allow": False, "access": "rwm"}]}},
}


def _prepare(root: Path) -> tuple[str, str]:
    cdi, hooks, later = root / "cdi", root / "hooks.d", root / "hooks.late"
    for directory in (cdi, hooks, later):
        directory.mkdir()
    for name, text in (("note", _NOTE), ("fail", _FAIL), ("precreate", _PRECREATE), ("broken", _BROKEN_PRECREATE)):
        (root / name).write_text(text.replace("LOG", str(root / "hooks.log")))
        (root / name).chmod(0o755)
    (root / "base.json").write_text(json.dumps(_BASE))
    runtime = f'cdi_spec_dirs = ["{cdi}"]\nhooks_dirs = ["{hooks}", "{later}"]'
    return runtime, f'allowed_annotations = ["run.oci.keep_original_groups", "example.com/*"]\nbase_spec = "{root / "base.json"}"'


@pytest.fixture(scope="module")
def node(crun_hierarchy: None) -> Iterator[DaemonNode]:
    """A server with directories of its own for CDI and hooks, and handlers with a base spec and allowed annotations."""
    with daemon_node(prepare=_prepare) as made:
        anyio.run(_warm, made)
        yield made


async def _warm(node: DaemonNode) -> None:
    async with connect(node.socket) as cri:
        for name in node.handlers:
            kubelet = Kubelet(node, cri, name)
            await kubelet.exec(await kubelet.started(await kubelet.run()), "true")
            await kubelet.clean()


@pytest.fixture
async def kubelet(node: DaemonNode, handler: str, leak_audit: LeakAudit) -> AsyncIterator[Kubelet]:
    leak_audit.watch(node.scope())
    async with connect(node.socket) as cri:
        made = Kubelet(node, cri, handler)
        yield made
        await made.clean()


def _write(path: Path, value: object) -> None:
    path.write_text(json.dumps(value))


def _cdi(node: DaemonNode, name: str, edits: Mapping[str, Any], *, kind: str = "example.com/card", **more: Any) -> None:
    _write(
        node.root / "cdi" / f"{name}.json",
        {"cdiVersion": "0.7.0", "kind": kind, "devices": [{"name": name, "containerEdits": edits}], **more},
    )


def _spec(node: DaemonNode, pod: str, container: str) -> dict[str, Any]:
    return dict(json.loads((node.root / "run/sandboxes" / pod / "containers" / container / "config.json").read_text()))


def _privileged(linux: pb.LinuxContainerConfig) -> pb.LinuxContainerConfig:
    assert linux.security_context is not None
    linux.security_context.privileged = True
    return linux


async def test_cdi(kubelet: Kubelet, node: DaemonNode) -> None:
    (node.root / "vendor").mkdir(exist_ok=True)
    (node.root / "vendor" / "lib").write_text("a library")
    if not (node.root / "card").exists():
        os.mknod(node.root / "card", stat.S_IFCHR | 0o600, os.makedev(240, 79))
    log = node.root / "hooks.log"
    log.unlink(missing_ok=True)
    edits = {
        "env": ["CARD=0"],
        "deviceNodes": [
            {"path": "/dev/card0", "hostPath": str(node.root / "card"), "permissions": "r", "fileMode": 0o640, "uid": 5, "gid": 6}
        ],
        "mounts": [{"hostPath": str(node.root / "vendor"), "containerPath": "/opt/vendor", "options": ["ro", "nosuid", "bind"]}],
        "hooks": [{"hookName": "createContainer", "path": str(node.root / "note"), "args": ["note", "by CDI"], "env": ["MARK=c"]}],
        "additionalGids": [4321],
    }
    pod = await kubelet.run()
    # Written right before the request: nothing waits for the watch to notice.
    _cdi(node, "zero", edits, containerEdits={"env": ["ANY_CARD=1"]})
    container = await kubelet.started(pod, CDI_devices=[pb.CdiDevice(name="example.com/card=zero")])
    assert await kubelet.output(container, "echo $CARD $ANY_CARD; cat /opt/vendor/lib") == "0 1\na library"
    assert (await kubelet.output(container, "ls -ln /dev/card0")).split()[:6] == ["crw-r-----", "1", "5", "6", "240,", "79"]
    assert "4321" in await kubelet.output(container, "grep Groups /proc/1/status")
    assert (await kubelet.exec(container, "touch /opt/vendor/new")).exit_code != 0
    assert b"No such device or address" in (await kubelet.exec(container, "cat /dev/card0")).stderr, "no driver, but the cgroup's leave"
    assert b"not permitted" in (await kubelet.exec(container, "echo x > /dev/card0")).stderr, "permissions r"
    assert log.read_text() == "by CDI c\n"
    again = await kubelet.started(pod, name="annotated", annotations={"cdi.k8s.io/driver_claim": "example.com/card=zero"})
    assert await kubelet.output(again, "echo $CARD") == "0"


async def test_cdi_names_that_cannot_be_had(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    for name in ("one", "two"):
        _write(
            node.root / "cdi" / f"quarrel-{name}.json",
            {"cdiVersion": "0.6.0", "kind": "example.com/nic", "devices": [{"name": "both", "containerEdits": {"env": [f"N={name}"]}}]},
        )
    (node.root / "cdi" / "damaged.json").write_text('{"cdiVersion": "9.9.9"}')
    names = ["example.com/nic=both", "example.com/tape=1", "no name"]
    with pytest.raises(CriError) as caught:
        await kubelet.create(
            pod, CDI_devices=[pb.CdiDevice(name=name) for name in names], annotations={"cdi.k8s.io/x": "example.com/card=none"}
        )
    for part in (
        *names,
        "config.CDI_devices[0].name",
        "config.annotations[cdi.k8s.io/x]",
        "quarrel-one.json and ",
        "damaged.json is not used",
    ):
        assert part in str(caught.value)
    for path in (node.root / "cdi").glob("quarrel-*.json"):
        path.unlink()
    (node.root / "cdi" / "damaged.json").unlink()


async def test_devices(kubelet: Kubelet, node: DaemonNode, tmp_path: Path) -> None:
    """One file, a link, a directory, a fifo; what may be done with each; and what isn't a device."""
    (tmp_path / "nodes" / "deep").mkdir(parents=True)
    os.mknod(tmp_path / "nodes" / "zero", stat.S_IFCHR | 0o666, os.makedev(1, 5))
    os.mknod(tmp_path / "nodes" / "deep" / "tape", stat.S_IFCHR | 0o600, os.makedev(240, 77))
    os.mknod(tmp_path / "exotic", stat.S_IFCHR | 0o600, os.makedev(240, 78))
    os.mkfifo(tmp_path / "fifo")
    (tmp_path / "link").symlink_to("exotic")
    (tmp_path / "file").write_text("x")
    wanted = [("link", "/dev/linked", "r"), ("nodes", "/dev/many", "rw"), ("fifo", "/dev/pipe", "rw")]
    pod = await kubelet.run()
    devices = [pb.Device(container_path=inside, host_path=str(tmp_path / name), permissions=p) for name, inside, p in wanted]
    container = await kubelet.started(pod, devices=devices)
    assert await kubelet.output(container, "head -c 3 /dev/many/zero | od -An -tx1") == "00 00 00"
    assert await kubelet.output(container, "ls -l /dev/many/deep/tape | cut -c1; ls -l /dev/pipe | cut -c1") == "c\np"
    # No driver has these numbers: what the device cgroup lets through fails with ENXIO, what it doesn't with EPERM.
    for command, answer in (
        ("cat /dev/linked", b"No such device or address"),
        ("echo x > /dev/linked", b"not permitted"),
        ("echo x > /dev/many/deep/tape", b"No such device or address"),
    ):
        assert answer in (await kubelet.exec(container, command)).stderr, command
    for host_path, words in ((str(tmp_path / "file"), "is not a device"), (str(tmp_path / "gone"), "No such file")):
        wrong = [pb.Device(container_path="/dev/x", host_path=host_path, permissions="r")]
        with pytest.raises(CriError, match=rf"config.devices\[0\].host_path: .*{words}"):
            await kubelet.create(pod, name="refused", devices=wrong)


@pytest.mark.parametrize("mapped", [False, True])
async def test_devices_of_a_privileged_pod(kubelet: Kubelet, mapped: bool) -> None:
    options = _mapped() if mapped else namespaces()
    config = kubelet.pod_config(options=options)
    assert config.linux is not None
    assert config.linux.security_context is not None
    config.linux.security_context.privileged = True
    pod = await kubelet.run(config=config)
    linux = _privileged(kubelet.container_config("x", "x", options=options).linux or pb.LinuxContainerConfig())
    container = await kubelet.started(pod, linux=linux)
    inside = set((await kubelet.output(container, "cd /dev; find . -type c -o -type b")).split())
    left_out = ("./pts/", "./shm/", "./mqueue/", "./fd/", "./console")
    host = {
        f"./{path.relative_to('/dev')}"
        for path in Path("/dev").rglob("*")
        if not path.is_symlink() and (path.is_char_device() or path.is_block_device())
    }
    assert {path for path in host if not path.startswith(left_out)} - inside - {"./ptmx"} == set()
    assert (await kubelet.exec(container, "mknod /tmp/m c 1 5 && head -c 1 /tmp/m")).stdout == (b"" if mapped else b"\0")


def _mapped() -> pb.NamespaceOption:
    """A PID namespace for each container, and a user namespace for the pod."""
    options = namespaces()
    ids = [pb.IdMapping(host_id=100000, container_id=0, length=65536)]
    options.userns_options = pb.UserNamespace(mode=pb.NamespaceMode.POD, uids=ids, gids=ids)
    return options


async def test_devices_in_a_user_namespace(kubelet: Kubelet, node: DaemonNode) -> None:
    """Nobody can make nodes there: runtimes bind-mount those of the same path, and we those of another."""
    options = _mapped()
    for name, minor in (("tape0", 90), ("tape1", 91)):
        if not (node.root / name).exists():
            os.mknod(node.root / name, stat.S_IFCHR, os.makedev(240, minor))
            (node.root / name).chmod(0o666)
    (node.root / "driver").mkdir(exist_ok=True)
    (node.root / "driver" / "lib").write_text("a library")
    mounts = [{"hostPath": str(node.root / "driver"), "containerPath": "/opt/driver", "options": ["ro", "rbind"]}]
    _cdi(node, "mapped", {"deviceNodes": [{"path": "/dev/tape1", "hostPath": str(node.root / "tape1")}], "mounts": mounts})
    devices = [pb.Device(container_path="/dev/tape0", host_path=str(node.root / "tape0"), permissions="r")]
    devices.append(pb.Device(container_path="/dev/zero", host_path="/dev/zero", permissions="rw"))
    pod = await kubelet.run(options=options)
    container = await kubelet.started(pod, options=options, devices=devices, CDI_devices=[pb.CdiDevice(name="example.com/card=mapped")])
    assert await kubelet.output(container, "stat -c %t:%T /dev/tape0 /dev/tape1 /dev/zero; cat /opt/driver/lib") == (
        "f0:5a\nf0:5b\n1:5\na library"
    )
    for command, answer in (
        ("cat /dev/tape0", b"No such device or address"),
        ("echo x > /dev/tape0", b"not permitted"),
        ("echo x > /dev/tape1", b"No such device or address"),
    ):
        assert answer in (await kubelet.exec(container, command)).stderr, command
    assert await kubelet.output(container, "head -c 1 /dev/zero | od -An -tx1") == "00"


async def test_hooks_of_each_stage(kubelet: Kubelet, node: DaemonNode) -> None:
    log, note = node.root / "hooks.log", str(node.root / "note")
    log.unlink(missing_ok=True)
    when = {"annotations": {"^example\\.com/hooks$": "yes"}}
    for stage in _STAGES:
        # In the container's own namespaces a hook's program is the container's.
        hook = (
            {"path": note, "args": ["note", stage]} if stage != "startContainer" else {"path": "/bin/touch", "args": ["touch", "/started"]}
        )
        _write(node.root / "hooks.d" / f"{stage}.json", {"version": "1.0.0", "hook": hook, "when": when, "stages": [stage]})
    _write(
        node.root / "hooks.d" / "z.json",
        {"version": "1.0.0", "hook": {"path": str(node.root / "fail")}, "when": when, "stages": ["prestart"]},
    )
    _write(
        node.root / "hooks.late" / "z.json",
        {
            "version": "1.0.0",
            "hook": {"path": str(node.root / "precreate")},
            "when": {"commands": ["sh$"], **when},
            "stages": ["precreate"],
        },
    )
    try:
        pod = await kubelet.run(annotations=_WANTS_HOOKS)
        container = await kubelet.started(pod, "echo PLACEHOLDER; ls /started; exec sleep 1000")
        assert await kubelet.log(pod, until=lambda lines: len(lines) >= 2) == ["stdout F by precreate", "stdout F /started"]
        # prestart is run as createRuntime, in the order of the files' names.
        assert log.read_text().split() == ["createRuntime", "prestart", "createContainer", "poststart"]
        await kubelet.stop(container, 0)
        await kubelet.remove(container)
        assert log.read_text().split()[-1] == "poststop"
        plain = await kubelet.run()
        await kubelet.started(plain)
        assert "hooks" not in _spec(node, plain, (await _containers(kubelet, plain))[0]), "no annotation, no hook"
    finally:
        for path in (*(node.root / "hooks.d").iterdir(), *(node.root / "hooks.late").iterdir()):
            path.unlink()


async def _containers(kubelet: Kubelet, pod: str) -> list[str]:
    found = await kubelet.cri.runtime.list_containers(pb.ListContainersRequest(filter=pb.ContainerFilter(pod_sandbox_id=pod)))
    return [each.id for each in found.containers]


async def test_hooks_that_fail(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    file = node.root / "hooks.d" / "fails.json"
    try:
        _write(file, {"version": "1.0.0", "hook": {"path": str(node.root / "fail")}, "when": {"always": True}, "stages": ["createRuntime"]})
        container = await kubelet.create(pod)
        with pytest.raises(CriError, match="the probe of the hook failed" if kubelet.handler == "runc" else "hook"):
            await kubelet.start(container)
        await kubelet.remove(container)
        _write(file, {"version": "1.0.0", "hook": {"path": str(node.root / "broken")}, "when": {"always": True}, "stages": ["precreate"]})
        with pytest.raises(CriError, match=r"precreate hook .*fails.json: .*exit code 4\): no licence"):
            await kubelet.create(pod)
        file.write_text("{")
        await kubelet.started(pod)
    finally:
        file.unlink()


async def test_annotations_that_steer_the_runtime(kubelet: Kubelet, node: DaemonNode) -> None:
    given = {
        "run.oci.keep_original_groups": "1",
        "run.oci.handler": "krun",
        "org.systemd.property.ExecStartPre": "[('/bin/true', ['/bin/true'], true)]",
        "example.com/colour": "red",
        "elsewhere.example/colour": "blue",
    }
    pod = await kubelet.run(annotations={**given, "example.com/colour": "of the pod"})
    own = await kubelet.create(pod, annotations=given)
    bare = await kubelet.create(pod, name="bare")
    of_own, of_bare = (_spec(node, pod, container)["annotations"] for container in (own, bare))
    assert {key: of_own.get(key) for key in given} == {
        **given,
        "run.oci.handler": None,
        "org.systemd.property.ExecStartPre": None,
    }, "CVE-2024-3154"
    assert {key: of_bare[key] for key in given if key in of_bare} == {
        "run.oci.keep_original_groups": "1",
        "example.com/colour": "of the pod",
    }, "a container gets of its pod's what the handler allows"
    assert (await kubelet.status(own)).annotations == given, "told back byte for byte all the same"
    await kubelet.start(own)


async def test_base_spec(kubelet: Kubelet, node: DaemonNode) -> None:
    pod = await kubelet.run()
    container = await kubelet.started(pod, envs=[pb.KeyValue(key="IN_BOTH", value=b"request")])
    assert await kubelet.output(container, "echo $FROM_BASE $IN_BOTH; ulimit -c; df -k /scratch | tail -1 | awk '{print $2}'") == (
        "1 request\n14\n64"
    ), "environment, rlimit (in blocks of 512 bytes) and mount"
    path = node.root / "base.json"
    changed: Any = json.loads(json.dumps(_BASE))
    changed["process"]["env"] = ["FROM_BASE=2"]
    _write(path, changed)
    try:
        await _reload(node, kubelet, pod, "2")
        path.write_text('{"process": {"env": "none"}}')
        await _reload(node, kubelet, pod, "2")
        assert "goes on with the base spec that it has: base_spec: " in node.server_log
    finally:
        _write(path, _BASE)
        await _reload(node, kubelet, pod, "1")


async def _reload(node: DaemonNode, kubelet: Kubelet, pod: str, expected: str) -> None:
    """SIGHUP, and containers made until the new base spec shows."""
    assert node.process is not None
    said = node.server_log.count("base specs were read")
    node.process.send_signal(signal.SIGHUP)
    with anyio.fail_after(30):
        while node.server_log.count("base specs were read") == said:
            await anyio.sleep(0.02)
    container = await kubelet.create(pod, name=f"env{said}")
    assert f"FROM_BASE={expected}" in _spec(node, pod, container)["process"]["env"]
    await kubelet.remove(container)


async def test_a_bad_base_spec_disables_its_handler(leak_audit: LeakAudit) -> None:
    def prepare(root: Path) -> tuple[str, str]:
        (root / "bad.json").write_text('{"process": {"rlimits": [{"soft": 1}]}}')
        return "", f'base_spec = "{root / "bad.json"}"'

    with daemon_node(prepare=prepare, cni=False, handlers={"runc": "runc"}) as node:
        async with connect(node.socket) as cri:
            kubelet = Kubelet(node, cri, "runc")
            with pytest.raises(CriError, match=r"handler 'runc' is disabled: base_spec: .*bad.json: process.rlimits: must be a list"):
                await kubelet.run(options=namespaces(network=pb.NamespaceMode.NODE))
