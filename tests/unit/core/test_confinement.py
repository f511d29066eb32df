"""Profiles that requests name: seccomp files below their root, AppArmor profiles of a recorded host."""

from __future__ import annotations

import dataclasses
import json
import logging
import os
from pathlib import Path

import anyio
import pytest

from bridge.core.confinement import Confiner
from bridge.core.model import ProfileType, SecurityProfile
from bridge.core.spec_inputs import Confinement, SpecSettings
from bridge.errors import InvalidRequest, Unsupported
from bridge.host.facts import HostFacts
from tests.unit.core.spec_cases import FACTS, facts
from tests.unit.host.test_apparmor import tree

PROFILE = {"defaultAction": "SCMP_ACT_ALLOW"}
SECCOMP_FIELD = "config.linux.security_context.seccomp.localhost_ref"
DEFAULT = SecurityProfile()
ON = facts(apparmor=True)


def _local(reference: str) -> SecurityProfile:
    return SecurityProfile(ProfileType.LOCALHOST, reference)


@pytest.fixture
def profiles(tmp_path: Path) -> Path:
    """A profile root; beside it lies a profile that must not be reachable."""
    root = tmp_path / "kubelet" / "seccomp"
    (root / "profiles").mkdir(parents=True)
    (root / "profiles" / "a.json").write_text(json.dumps(PROFILE))
    (tmp_path / "outside.json").write_text(json.dumps(PROFILE))
    return root


async def _seccomp(root: Path, reference: str) -> Confinement:
    confiner = Confiner(FACTS, SpecSettings(seccomp_profile_root=root))
    return await confiner.find(_local(reference), None, privileged=False)


async def test_seccomp_by_relative_name_and_whole_path(profiles: Path) -> None:
    for reference in ("profiles/a.json", str(profiles / "profiles/a.json"), "./profiles//a.json"):
        assert (await _seccomp(profiles, reference)).seccomp == PROFILE
    (profiles / "link.json").symlink_to("profiles/a.json")
    assert (await _seccomp(profiles, "link.json")).seccomp == PROFILE


async def test_the_root_itself_may_be_reached_by_a_link(profiles: Path) -> None:
    moved = profiles.parent.parent / "link"
    moved.symlink_to(profiles)
    for reference in (moved / "profiles/a.json", profiles / "profiles/a.json"):
        assert (await _seccomp(moved, str(reference))).seccomp == PROFILE


@pytest.mark.parametrize(
    "reference", ["../../outside.json", "{top}/outside.json", "profiles/../../../outside.json", "up.json", "abs.json", "a/b"]
)
async def test_nothing_outside_the_root_is_read(profiles: Path, reference: str) -> None:
    top = profiles.parent.parent
    (profiles / "up.json").symlink_to("../../outside.json")
    (profiles / "abs.json").symlink_to(top / "outside.json")
    (profiles / "a").symlink_to(top)
    with pytest.raises(InvalidRequest) as caught:
        await _seccomp(profiles, reference.format(top=top))
    assert caught.value.field == SECCOMP_FIELD


async def test_a_prefix_of_the_name_is_not_below_it(profiles: Path) -> None:
    (profiles.parent / "seccomp-evil").mkdir()
    (profiles.parent / "seccomp-evil" / "a.json").write_text("{}")
    with pytest.raises(InvalidRequest, match=r"^config\.linux\.security_context\.seccomp\.localhost_ref: /[^:]* is not below"):
        await _seccomp(profiles, str(profiles.parent / "seccomp-evil/a.json"))


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "does not exist"),
        ("", "not JSON"),
        ("[]", "JSON object"),
        ("{", "not JSON"),
        ("[" * 100_000, "not JSON"),
        (" " * (4 << 20) + "{}", "larger"),
    ],
)
async def test_what_is_no_profile_is_refused(profiles: Path, content: str | None, why: str) -> None:
    if content is not None:
        (profiles / "b.json").write_text(content)
    with pytest.raises(InvalidRequest, match=why) as caught:
        await _seccomp(profiles, "b.json")
    assert caught.value.field == SECCOMP_FIELD


async def test_a_fifo_or_directory_as_profile_keeps_nobody_waiting(profiles: Path) -> None:
    os.mkfifo(profiles / "fifo")
    with anyio.fail_after(5):
        for reference in ("fifo", "profiles"):
            with pytest.raises(InvalidRequest, match="regular file"):
                await _seccomp(profiles, reference)


async def test_a_missing_root(tmp_path: Path) -> None:
    with pytest.raises(InvalidRequest, match="does not exist"):
        await _seccomp(tmp_path / "none", "a.json")


async def test_nothing_counts_for_the_privileged(tmp_path: Path) -> None:
    confiner = Confiner(ON, SpecSettings(seccomp_profile_root=tmp_path, apparmor_root=tmp_path, apparmor_profile="x"))
    assert await confiner.find(_local("absent"), _local("absent"), privileged=True) == Confinement()


async def _apparmor(request: SecurityProfile | None, root: Path, host: HostFacts = ON, profile: str = "cri-bridge-default") -> str:
    confiner = Confiner(host, SpecSettings(apparmor_root=root, apparmor_profile=profile))
    return (await confiner.find(None, request, privileged=False)).apparmor


async def test_a_host_without_apparmor(tmp_path: Path) -> None:
    for request in (None, DEFAULT, SecurityProfile(ProfileType.UNCONFINED)):
        assert await _apparmor(request, tmp_path, FACTS) == ""
    with pytest.raises(Unsupported, match=r"security_context\.apparmor: profile 'strict'.*no AppArmor"):
        await _apparmor(_local("strict"), tmp_path, FACTS)


async def test_loaded_profiles_are_set(tmp_path: Path) -> None:
    root = tree(tmp_path)
    assert await _apparmor(None, root) == await _apparmor(DEFAULT, root) == "cri-bridge-default"
    assert await _apparmor(_local("k8s-apparmor-example-deny-write"), root) == "k8s-apparmor-example-deny-write"
    assert await _apparmor(SecurityProfile(ProfileType.UNCONFINED), root) == "unconfined"
    assert await _apparmor(None, root, profile="unconfined") == "unconfined"
    assert await _apparmor(None, root, profile="") == ""
    assert not (root / "got").exists()  # nothing had to be loaded


@pytest.mark.parametrize("name", ["strict", "unconfined", "cri-bridge", "snap.firefox"])
async def test_a_profile_that_is_not_loaded_is_refused(tmp_path: Path, name: str) -> None:
    with pytest.raises(InvalidRequest, match="is not loaded on this node") as caught:
        await _apparmor(_local(name), tree(tmp_path))
    assert caught.value.field == "config.linux.security_context.apparmor.localhost_ref"


async def test_our_own_profile_is_loaded_once_when_it_is_first_needed(tmp_path: Path) -> None:
    load = "cat >> {root}/got; echo 'cri-bridge-default (enforce)' >> {root}/sys/kernel/security/apparmor/profiles"
    root = tree(tmp_path, profiles="", parser=load)
    confiner = Confiner(ON, SpecSettings(apparmor_root=root, apparmor_profile="cri-bridge-default"))
    found: list[str] = []

    async def ask() -> None:
        found.append((await confiner.find(None, DEFAULT, privileged=False)).apparmor)

    async with anyio.create_task_group() as group:
        for _ in range(5):
            group.start_soon(ask)
    assert found == ["cri-bridge-default"] * 5
    assert (root / "got").read_text().count("profile cri-bridge-default ") == 1


@pytest.mark.parametrize(("parser", "profile"), [(None, "cri-bridge-default"), ("exit 1", "cri-bridge-default"), ("exit 0", "corporate")])
async def test_where_the_default_can_not_be_had(tmp_path: Path, parser: str | None, profile: str, caplog: pytest.LogCaptureFixture) -> None:
    root = tree(tmp_path, profiles="", parser=parser)
    confiner = Confiner(ON, dataclasses.replace(SpecSettings(), apparmor_root=root, apparmor_profile=profile))
    with caplog.at_level(logging.WARNING):
        for _ in range(3):
            assert (await confiner.find(None, None, privileged=False)).apparmor == ""
    assert sum("without an AppArmor profile" in record.message for record in caplog.records) == 1
    with pytest.raises(Unsupported, match=r"security_context\.apparmor"):
        await confiner.find(None, DEFAULT, privileged=False)
