"""Machines over a fake of what runs them: their root, their end, their network, and that nothing of one is left."""

from __future__ import annotations

import contextlib
import dataclasses
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import anyio
import pytest
from bridge_kata import leftovers
from bridge_kata.backend import KataBackend, Settings
from bridge_kata.leftovers import Places
from bridge_kata.specs import Choices

from bridge.errors import Denied, HostError, InvalidRequest, RuntimeFailed, Unavailable, Unsupported
from bridge.host import mounts
from bridge.ports.runtime import ContainerIO, ContainerSpec, NamespacePaths, SandboxKind, SandboxSpec
from bridge.testing.fakes import FakeBackend, FakeSandbox

IDENT = "ab" * 32
NETWORK = Path("/run/nobody/net")


@pytest.fixture
def inner() -> FakeBackend:
    return FakeBackend()


def backend(inner: FakeBackend, tmp_path: Path, **changes: object) -> KataBackend:
    settings = Settings(
        Choices(), inner.features, 2.0, lambda spec: spec.state_dir / "shim" / spec.id, places=Places(tmp_path / "run", tmp_path / "state")
    )
    return KataBackend(inner, dataclasses.replace(settings, **changes))  # type: ignore[arg-type]


def spec(tmp_path: Path, **changes: object) -> SandboxSpec:
    pause = tmp_path / "pause"
    pause.mkdir(exist_ok=True)
    (pause / "pause").write_text("#!")
    state = tmp_path / "pod"
    state.mkdir(exist_ok=True)
    made = SandboxSpec(
        id=IDENT,
        name="web",
        namespace="default",
        uid="u",
        hostname="web",
        state_dir=state,
        namespaces=NamespacePaths(net=NETWORK),
        shared_pid=True,
        cgroup_parent="/kubepods/pod1",
        oci={"root": {"path": str(pause), "readonly": True}, "annotations": {}, "linux": {}, "process": {}},
    )
    return dataclasses.replace(made, **changes)  # type: ignore[arg-type]


async def test_the_sandbox_container_has_a_root_that_no_other_pod_uses(inner: FakeBackend, tmp_path: Path) -> None:
    made = backend(inner, tmp_path)
    assert made.sandbox_kind is SandboxKind.VM
    await made.create_sandbox(spec(tmp_path))
    oci = inner.sandboxes[IDENT].spec.oci
    assert oci is not None
    root = Path(oci["root"]["path"])
    assert root == tmp_path / "pod/shim" / IDENT / "rootfs"
    assert (root / "pause").read_text() == "#!"
    (root / "pause").unlink()
    assert (tmp_path / "pause/pause").exists()


async def test_containers_get_specs_for_a_guest(inner: FakeBackend, tmp_path: Path) -> None:
    machine = await backend(inner, tmp_path).create_sandbox(spec(tmp_path))
    oci = {"process": {"apparmorProfile": "p"}, "linux": {"namespaces": [{"type": "pid", "path": "@sandbox"}]}}
    await machine.create_container(ContainerSpec("c" * 64, IDENT, tmp_path, oci, ContainerIO()))
    made = inner.containers["c" * 64].spec.oci
    assert made == {"process": {}, "linux": {"namespaces": [{"type": "pid", "path": "/proc/1000/ns/pid"}]}}


async def test_a_pod_in_the_nodes_network_is_refused(inner: FakeBackend, tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match=r"namespace_options\.network: a machine can't be in the node's network"):
        await backend(inner, tmp_path).create_sandbox(spec(tmp_path, namespaces=NamespacePaths()))
    with pytest.raises(InvalidRequest, match="needs the spec of a sandbox container"):
        await backend(inner, tmp_path).create_sandbox(spec(tmp_path, oci=None))
    assert inner.sandboxes == {}


async def test_withheld_annotations_can_refuse_the_pod(inner: FakeBackend, tmp_path: Path) -> None:
    asked = {"io.katacontainers.config.hypervisor.path": "/bin/sh"}
    with pytest.raises(Denied, match=r"config\.annotations\['io\.katacontainers\.config\.hypervisor\.path'\]: not in some\.option"):
        await backend(inner, tmp_path, refuse="some.option").create_sandbox(spec(tmp_path, annotations=asked))
    assert inner.sandboxes == {}
    await backend(inner, tmp_path).create_sandbox(spec(tmp_path, annotations=asked))


def kata_directories(tmp_path: Path) -> Path:
    for directory in Places(tmp_path / "run", tmp_path / "state").of(IDENT):
        directory.mkdir(parents=True)
        (directory / "file").write_text("x")
    return tmp_path / "run/kata-containers/shared/sandboxes" / IDENT


@contextlib.contextmanager
def program(tmp_path: Path, name: str, *arguments: str) -> Iterator[subprocess.Popen[bytes]]:
    script = tmp_path / name
    script.write_text("import sys, time\nprint('up', flush=True)\ntime.sleep(600)\n")
    process = subprocess.Popen([sys.executable, str(script), *arguments], stdout=subprocess.PIPE)
    try:
        assert process.stdout is not None
        process.stdout.readline()
        yield process
    finally:
        process.kill()
        process.wait()
        assert process.stdout is not None
        process.stdout.close()


@pytest.mark.root
async def test_a_failed_boot_leaves_no_process_mount_or_directory(inner: FakeBackend, tmp_path: Path) -> None:
    shared = kata_directories(tmp_path)
    precious = tmp_path / "image"
    precious.mkdir()
    (precious / "file").write_text("precious")
    (shared / "rootfs").mkdir()
    await mounts.bind(precious, shared / "rootfs")
    inner.faults.fail_on.add("create_sandbox")
    with program(tmp_path, "qemu-system-x86_64", "-name", f"sandbox-{IDENT}") as machine, program(tmp_path, "less", IDENT) as other:
        with pytest.raises(RuntimeFailed):
            await backend(inner, tmp_path).create_sandbox(spec(tmp_path))
        assert machine.wait(10) == -9
        assert other.poll() is None, "the id in its arguments does not make it one of Kata's"
    assert (precious / "file").read_text() == "precious", "what was behind a mount is not deleted"
    assert [path for path in Places(tmp_path / "run", tmp_path / "state").of(IDENT) if path.exists()] == []
    assert not any(str(tmp_path) in mount.target for mount in mounts.read_mountinfo())


@pytest.mark.root
async def test_leftovers_of_others_stay(tmp_path: Path) -> None:
    shared = kata_directories(tmp_path)
    other = shared.with_name("cd" * 32)
    other.mkdir()
    with program(tmp_path, "cloud-hypervisor", "--api-socket", f"/run/vc/vm/{'cd' * 32}/clh-api.sock") as machine:
        await leftovers.remove(IDENT, Places(tmp_path / "run", tmp_path / "state"))
        assert machine.poll() is None
    assert other.exists()
    assert not shared.exists()
    await leftovers.remove(IDENT, Places(tmp_path / "run", tmp_path / "state"))


async def test_nothing_is_deleted_below_a_mount_that_stays(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    shared = kata_directories(tmp_path)
    monkeypatch.setattr(leftovers, "_mounted_below", lambda directory: directory == shared)
    with pytest.raises(HostError, match="still has mounts"):
        await leftovers.remove(IDENT, Places(tmp_path / "run", tmp_path / "state"))
    assert (shared / "file").exists()


async def test_delete_removes_all_that_a_machine_left(inner: FakeBackend, tmp_path: Path) -> None:
    machine = await backend(inner, tmp_path).create_sandbox(spec(tmp_path))
    shared = kata_directories(tmp_path)
    await machine.delete()
    assert not shared.exists()
    assert inner.sandboxes == {}
    await machine.delete()


@pytest.mark.parametrize("trouble", ["hangs", "fails"])
async def test_a_machine_that_cannot_be_powered_off_is_killed(
    inner: FakeBackend, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, trouble: str
) -> None:
    machine = await backend(inner, tmp_path, stop_timeout=0.2).create_sandbox(spec(tmp_path))
    calls = []
    with program(tmp_path, "qemu-system-x86_64", f"sandbox-{IDENT}") as process:

        async def stop(self: FakeSandbox) -> None:
            calls.append(process.poll())
            if len(calls) == 1 and trouble == "hangs":
                await anyio.sleep_forever()
            if len(calls) == 1:
                raise Unavailable("the shim is gone")

        monkeypatch.setattr(FakeSandbox, "stop", stop)
        await machine.stop()
        assert process.wait(10) == -9
    assert calls[0] is None
    assert len(calls) == 2, "the runtime sees to the rest once the machine is gone"


async def test_strangers_go_with_what_they_left(inner: FakeBackend, tmp_path: Path) -> None:
    made = backend(inner, tmp_path)
    await made.create_sandbox(spec(tmp_path))
    shared = kata_directories(tmp_path)
    assert await made.remove_strangers(lambda ident: False) == [IDENT]
    assert not shared.exists()


async def test_after_a_restart_it_is_the_same(inner: FakeBackend, tmp_path: Path) -> None:
    machine = await backend(inner, tmp_path).create_sandbox(spec(tmp_path))
    again = await backend(inner, tmp_path).load_sandbox(spec(tmp_path), machine.record)
    assert (again.id, again.pid, again.record) == (machine.id, machine.pid, machine.record)
    await again.create_container(ContainerSpec("c" * 64, IDENT, tmp_path, {}, ContainerIO()))
    loaded = await again.load_container(ContainerSpec("c" * 64, IDENT, tmp_path, {}, ContainerIO()), {"v": 1})
    assert loaded.id == "c" * 64


async def test_the_final_spec_is_shown(inner: FakeBackend, tmp_path: Path) -> None:
    made = backend(inner, tmp_path, choices=Choices({"io.katacontainers.config.hypervisor.default_vcpus": "2"}))
    assert made.final_spec({"process": {"apparmorProfile": "p", "args": ["x"]}, "linux": {}})["process"] == {"args": ["x"]}
    shown = made.final_sandbox_spec(spec(tmp_path))
    assert shown["annotations"] == {"io.katacontainers.config.hypervisor.default_vcpus": "2"}
    assert shown["root"]["path"].endswith("/rootfs")
    assert inner.sandboxes == {}


@pytest.mark.parametrize("fixed", [False, True])
async def test_a_machine_follows_its_containers_limits(inner: FakeBackend, tmp_path: Path, fixed: bool) -> None:
    machine = await backend(inner, tmp_path, fixed_size=fixed).create_sandbox(spec(tmp_path))
    with pytest.raises(Unsupported, match="static_sandbox_resource_mgmt") if fixed else contextlib.nullcontext():
        await machine.update({"memory": {"limit": 1 << 30}})
    assert inner.sandboxes[IDENT].updates == [], "with the pod's limits on its own container Kata would count them twice"
