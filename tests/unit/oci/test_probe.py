from __future__ import annotations

import json
import os
import shlex
import tempfile
from pathlib import Path

import pytest

from bridge.errors import HostError, RuntimeFailed, Unsupported
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.oci import claims, trial
from bridge.oci.cli import OciCli, OciSettings
from bridge.oci.dialect import ExecCgroup
from bridge.oci.probe import KernelFacts, exec_cgroup_style, judge, probe
from bridge.ports.runtime import Ability, Support

CRUN = "crun version 1.8.1\ncommit: f8a\nrundir: /run/crun\nspec: 1.0.0\n+SYSTEMD +SELINUX +CAP +SECCOMP +EBPF +YAJL\n"
FEATURES = {
    "mountOptions": ["ro", "rro"],
    "linux": {"namespaces": ["pid", "user"], "seccomp": {"enabled": True}, "apparmor": {"enabled": False}, "cgroup": {"systemd": True}},
    "annotations": {"org.opencontainers.runc.checkpoint.enabled": "true"},
}
ALL = KernelFacts(True, True, True, True, True, True, True)


def test_claims_from_a_version_text() -> None:
    found = claims.from_version(CRUN)
    assert found.version == "crun version 1.8.1"
    assert found.abilities[Ability.SECCOMP] is True
    assert found.abilities[Ability.APPARMOR] is False
    assert Ability.USER_NAMESPACES not in found.abilities
    assert claims.from_version("odd 3").abilities == {}


def test_claims_from_features() -> None:
    found = claims.from_features("runc version 1.1.5\n", FEATURES).abilities
    assert found[Ability.RECURSIVE_READ_ONLY] is found[Ability.USER_NAMESPACES] is found[Ability.CHECKPOINT] is True
    assert found[Ability.APPARMOR] is found[Ability.IDMAPPED_MOUNTS] is False
    assert Ability.SELINUX not in found


@pytest.mark.parametrize("odd", [{"linux": []}, {"linux": {"seccomp": {"enabled": "yes"}}}, {"mountOptions": "rro"}])
def test_odd_features_are_unknown_not_wrong(odd: dict[str, object]) -> None:
    found = claims.from_features("x", odd).abilities
    assert Ability.SECCOMP not in found
    assert Ability.RECURSIVE_READ_ONLY not in found


def test_an_ability_needs_both_the_claim_and_the_host() -> None:
    said = claims.from_features("runc", FEATURES)
    found = judge(said, ALL, verified="tried")
    assert found[Ability.SECCOMP].support is found[Ability.RECURSIVE_READ_ONLY].support is Support.SUPPORTED
    assert found[Ability.SECCOMP].detail == "tried"
    assert found[Ability.APPARMOR].support is Support.UNSUPPORTED
    assert "says nothing of it" in found[Ability.SELINUX].detail
    bare = judge(said, KernelFacts(False, False, False, False, False, False, False), verified="tried")
    assert bare[Ability.SECCOMP].detail == "the kernel has no seccomp"
    assert bare[Ability.CHECKPOINT].detail == "criu is not installed"


def test_kernel_facts_of_a_recorded_host(tmp_path: Path) -> None:
    for name, text in {
        "proc/sys/kernel/osrelease": "5.10.0-1-amd64\n",
        "proc/self/status": "Name:\tx\nSeccomp:\t0\n",
        "sys/module/apparmor/parameters/enabled": "Y\n",
        "proc/sys/user/max_user_namespaces": "0\n",
        "proc/self/ns/user": "",
    }.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text)
    assert KernelFacts.read(tmp_path) == KernelFacts(True, True, False, False, False, False, False)
    (tmp_path / "proc/sys/kernel/osrelease").write_text("6.1+rc1\n")
    (tmp_path / "proc/sys/user/max_user_namespaces").write_text("100\n")
    facts = KernelFacts.read(tmp_path)
    assert (facts.user_namespaces, facts.recursive_attributes) == (True, True)


def test_how_exec_takes_a_cgroup() -> None:
    assert exec_cgroup_style("--cgroup value  run in a sub-cgroup. Format is [<controller>:]<cgroup>.") is ExecCgroup.CONTROLLER
    assert exec_cgroup_style("      --cgroup=PATH          sub-cgroup in the container") is ExecCgroup.PATH
    assert exec_cgroup_style("--detach") is ExecCgroup.NONE


class FakeRuntime:
    """A shell script with runc's command line, which notes what it was asked."""

    def __init__(self, root: Path, *, run: str = "exit 0", features: str = "exit 1") -> None:
        self.calls = root / "calls"
        self.path = root / "fake"
        self.path.write_text(
            f'#!/bin/sh\necho "$@" >> {shlex.quote(str(self.calls))}\nshift 2\ncase $1 in\n'
            f"--version) echo 'fake version 3';;\nfeatures) {features};;\nexec) echo '  --cgroup=PATH';;\nrun) {run};;\nesac\n"
        )
        self.path.chmod(0o755)
        self.cli = OciCli(OciSettings(handler="fake", path=self.path, root=root / "state"))

    def verbs(self) -> list[str]:
        return [line.split()[2] for line in self.calls.read_text().splitlines()]


async def test_a_probe_is_kept_until_the_binary_changes(tmp_path: Path) -> None:
    fake = FakeRuntime(tmp_path, features="echo '" + json.dumps(FEATURES) + "'")
    first = await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")
    asked = fake.verbs()
    assert asked[:4] == ["--version", "features", "exec", "run"]
    assert set(asked[4:]) <= {"run"}, "the second trial is that of user namespaces, for who may make them"
    assert first.features.version == "fake version 3"
    assert first.exec_cgroup is ExecCgroup.PATH
    assert not (tmp_path / "scratch").exists()
    assert await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch") == first
    assert fake.verbs() == asked
    os.utime(fake.path, (1, 1))
    await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")
    assert fake.verbs() == asked * 2


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"identity": 1}'])
async def test_a_damaged_answer_is_found_out_anew(tmp_path: Path, damage: str) -> None:
    fake = FakeRuntime(tmp_path)
    (tmp_path / "kept").write_text(damage)
    assert (await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")).features.version == "fake version 3"


async def test_a_failed_trial_tells_what_the_runtime_said_and_is_not_kept(tmp_path: Path) -> None:
    fake = FakeRuntime(tmp_path, run="echo 'no such controller' >&2; exit 1")
    for _ in range(2):
        with pytest.raises(RuntimeFailed, match=r"trial run failed \(exit code 1\): no such controller"):
            await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")
    assert fake.verbs().count("run") == 2
    assert fake.verbs()[-1] == "delete"
    assert not (tmp_path / "scratch").exists()


def test_cruns_refusal_of_a_hybrid_host_gets_the_mending_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cgroup.controllers").write_text("hugetlb\n")
    monkeypatch.setattr("bridge.oci.trial.cgroups.layout", lambda: CgroupLayout({"": CgroupMount(tmp_path)}))
    hint = trial.mending("cgroups in hybrid mode not supported, drop all controllers from cgroupv2")
    assert "mount -t cgroup -o hugetlb none /sys/fs/cgroup/hugetlb" in hint
    assert trial.mending("something else") == ""


async def test_a_binary_that_is_gone(tmp_path: Path) -> None:
    cli = OciCli(OciSettings(handler="x", path=tmp_path / "gone", root=tmp_path))
    with pytest.raises(HostError, match="gone: No such file"):
        await probe(cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")


@pytest.mark.skipif(Path("/run/systemd/system").exists(), reason="systemd runs this host")
async def test_the_systemd_driver_without_systemd(tmp_path: Path) -> None:
    fake = FakeRuntime(tmp_path)
    cli = OciCli(OciSettings(handler="x", path=fake.path, root=tmp_path, systemd_cgroup=True))
    with pytest.raises(Unsupported, match=r"set runtime\.cgroup_driver to cgroupfs"):
        await probe(cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")


async def test_a_directory_that_root_of_a_user_namespace_can_not_pass_is_named() -> None:
    with tempfile.TemporaryDirectory() as name:  # mode 0700, as pytest's own, whose parents are closed too
        root = Path(name)
        fake = FakeRuntime(root)
        found = await probe(fake.cli, cache=root / "kept", scratch=root / "cache" / "scratch", bundles=root)
        feature = found.features.abilities[Ability.USER_NAMESPACES]
        assert (feature.support, feature.detail.partition(":")[0]) == (
            Support.UNSUPPORTED,
            f"root of a user namespace can't pass {root}",
        )
        assert fake.verbs().count("run") == 1
        root.chmod(0o711)
        await probe(fake.cli, cache=root / "kept", scratch=root / "cache" / "scratch", bundles=root)
        assert fake.verbs().count("run") > 1, "asked anew once it is open"


@pytest.mark.root
async def test_user_namespaces_that_failed_once_are_tried_again(tmp_path: Path) -> None:
    for directory in (tmp_path, *tmp_path.parents):
        if directory.owner() == "root" and str(directory).startswith("/tmp/"):
            directory.chmod(0o711)
    fake = FakeRuntime(
        tmp_path, run=f"if [ -e {tmp_path}/ready ]; then exit 0; fi; if [ -e {tmp_path}/once ]; then exit 1; fi; touch {tmp_path}/once"
    )
    first = await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")
    assert not first.features.has(Ability.USER_NAMESPACES)
    assert not (tmp_path / "kept").exists()
    (tmp_path / "ready").touch()
    second = await probe(fake.cli, cache=tmp_path / "kept", scratch=tmp_path / "scratch")
    assert second.features.has(Ability.USER_NAMESPACES)
    assert (tmp_path / "kept").exists()
