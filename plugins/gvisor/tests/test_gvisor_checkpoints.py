"""Checkpoints of whole pods: how runsc is called, what its trial proves, and what is said where it can't."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
from bridge_gvisor import checkpoint_trial
from bridge_gvisor.container import GvisorContainer
from bridge_gvisor.host import GvisorHost
from bridge_gvisor.probe import judge
from bridge_gvisor.runsc import Runsc, RunscSettings
from bridge_gvisor.sandbox import GvisorSandbox
from bridge_gvisor.trial import Outcome

from bridge.errors import RuntimeFailed
from bridge.ports.checkpoints import Checkpointing, PodCheckpointing
from bridge.ports.runtime import Ability, ContainerIO, ContainerSpec, NamespacePaths, SandboxSpec, Support

HOSTINET = "checkpoint not supported when using hostinet"


def fake(tmp_path: Path, *, fails: str = "", flags: tuple[str, ...] = (), young: bool = True) -> Runsc:
    """A runsc that writes down how it is called and fails at the verb ``fails``."""
    binary = tmp_path / "runsc"
    told = "  -direct" if young else "  -leave-running"
    binary.write_text(
        f'#!/bin/sh\necho "$*" >> {tmp_path}/calls\ncase "$*" in *"help checkpoint"*) echo "{told}";; *" {fails or "nothing"} "*)\n'
        f'echo "{fails}: {HOSTINET}" >&2; exit 128;; esac\n'
    )
    binary.chmod(0o755)
    return Runsc(RunscSettings("h", binary, tmp_path / "root", network="none", flags=flags))


def calls(tmp_path: Path) -> list[str]:
    prefix = f"--root {tmp_path}/root --network=none --net-raw "
    return [line.removeprefix(prefix) for line in (tmp_path / "calls").read_text().splitlines()]


async def test_the_trial_makes_a_pod_again_of_its_checkpoint(tmp_path: Path) -> None:
    assert await checkpoint_trial.fault(fake(tmp_path), "trial", tmp_path) == ""
    verbs = [line.split()[0] for line in calls(tmp_path)]
    assert verbs == [*("help", "delete", "run", "run", "checkpoint", "exec"), *("delete", "delete", "restore", "restore", "exec")]
    restores = [line for line in calls(tmp_path) if line.startswith("restore")]
    assert restores == [
        f"restore --detach --image-path {tmp_path}/images --bundle {tmp_path} trial",
        f"restore --detach --image-path {tmp_path}/images --bundle {tmp_path}/member member-trial",
    ]


@pytest.mark.parametrize("verb", ["run", "checkpoint", "exec", "restore"])
async def test_what_runsc_says_is_told(tmp_path: Path, verb: str) -> None:
    why = await checkpoint_trial.fault(fake(tmp_path, fails=verb), "trial", tmp_path)
    assert HOSTINET in why
    assert f"{verb} failed" in why


async def test_what_is_not_even_tried(tmp_path: Path) -> None:
    assert "before May 2024" in await checkpoint_trial.fault(fake(tmp_path, young=False), "trial", tmp_path)
    assert "options.overlay" in await checkpoint_trial.fault(fake(tmp_path, flags=("--overlay2=none",)), "trial", tmp_path)


def test_the_second_container_is_removed_too(tmp_path: Path) -> None:
    assert not checkpoint_trial.member("trial").startswith("trial"), "runsc takes an id for another's beginning"


def test_what_the_ability_says() -> None:
    made = RunscSettings("h", Path("/x"), Path("/r"))
    found = judge(made, frozenset(), Outcome("a trial sandbox ran"))[Ability.CHECKPOINT]
    assert (found.support, "CheckpointPod" in found.detail) == (Support.EMULATED, True)
    found = judge(made, frozenset(), Outcome("a trial sandbox ran", no_checkpoint=HOSTINET))[Ability.CHECKPOINT]
    assert (found.support, found.detail) == (Support.UNSUPPORTED, HOSTINET)


class Launches:
    """A monitor that starts nothing."""

    def __init__(self) -> None:
        self.argv: list[list[str]] = []

    async def launch(self, ident: str, argv: list[str], **options: Any) -> int:
        self.argv.append(argv)
        return 1


def host(tmp_path: Path, runsc: Runsc) -> tuple[GvisorHost, Launches]:
    monitor = Launches()

    async def write_bundle(bundle: Path, oci: object) -> None:
        bundle.mkdir(exist_ok=True)

    async def present() -> object:
        return monitor

    made = SimpleNamespace(runsc=runsc, present=present, write_bundle=write_bundle, process=dict)
    made.context = SimpleNamespace(adjusted=lambda oci, ident, pod, handler: oci)
    return cast("GvisorHost", made), monitor


def pod(tmp_path: Path, restore: Path | None) -> SandboxSpec:
    return SandboxSpec("p1", "n", "ns", "u", "h", tmp_path, NamespacePaths(), shared_pid=False, cgroup_parent="", restore=restore)


@pytest.mark.parametrize("images", [None, Path("/images")])
async def test_a_pod_and_its_containers_are_restored_from_the_same_images(tmp_path: Path, images: Path | None) -> None:
    there, monitor = host(tmp_path, fake(tmp_path))
    sandbox = GvisorSandbox(there, pod(tmp_path, images))
    await sandbox.start({})
    oci: dict[str, Any] = {"process": {}, "root": {"path": str(tmp_path)}, "mounts": [], "linux": {}}
    spec = ContainerSpec("c1", "p1", tmp_path, oci, ContainerIO(), restore=None if images is None else tmp_path)
    await (await sandbox.create_container(spec)).start()
    verb, words = ("run", []) if images is None else ("restore", ["--image-path", "/images"])
    for argv in monitor.argv:
        assert verb in argv
        assert [word for word in argv if word in ("--image-path", "/images")] == words


async def test_a_pod_is_written_down_and_lives_on(tmp_path: Path) -> None:
    there, _ = host(tmp_path, fake(tmp_path))
    sandbox = GvisorSandbox(there, pod(tmp_path, None))
    assert isinstance(sandbox, PodCheckpointing)
    assert not isinstance(GvisorContainer(there, cast("Any", ContainerSpec("c", "p", tmp_path, {}, ContainerIO()))), Checkpointing)
    await sandbox.checkpoint_pod(Path("/images"), timeout=5)
    assert calls(tmp_path) == ["checkpoint --leave-running --image-path /images p1"]
    there, _ = host(tmp_path, fake(tmp_path, fails="checkpoint"))
    with pytest.raises(RuntimeFailed, match=HOSTINET):
        await GvisorSandbox(there, pod(tmp_path, None)).checkpoint_pod(Path("/images"), timeout=5)
