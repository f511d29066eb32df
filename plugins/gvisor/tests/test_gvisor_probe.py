"""What runsc says, in words that help, and what a probe makes of what it saw."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
from bridge_gvisor.limits import limits
from bridge_gvisor.options import GvisorOptions
from bridge_gvisor.probe import judge
from bridge_gvisor.runsc import Runsc, RunscSettings, descendants, parse_processes
from bridge_gvisor.trial import Outcome
from bridge_gvisor.words import mending, start_code

from bridge.ports.runtime import Ability, Support


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ("starting sub-container [/nope]: creating process: failed to load /nope: no such file or directory", 127),
        ('starting sub-container [nope]: error finding executable "nope" in PATH [/bin]: no such file or directory', 127),
        ("starting sub-container [/etc]: creating process: failed to load /etc: permission denied", 126),
        ("starting sub-container [/x]: creating process: failed to load /x: exec format error", 126),
        ("cannot create sandbox: no such file or directory", 128),
    ],
)
def test_start_codes(said: str, code: int) -> None:
    assert start_code([said]) == code


@pytest.mark.parametrize(
    ("said", "hint"),
    [
        ("creating interfaces: cannot run with network enabled in root network namespace", 'options.network to "host"'),
        ("panic: running on goroutine 0 (task goroutine is 5)", "gVisor project's own build"),
        ('Rootless mode not supported with "create"', "options.rootless"),
        ("opening /dev/kvm: no such file", "options.platform is kvm"),
        ("something else", ""),
    ],
)
def test_known_failures_are_mended_in_words(said: str, hint: str) -> None:
    found = mending([said], "runsc version 0.0~20221219.0", "6.18.0")
    assert hint in found
    assert bool(found) is bool(hint)


def test_processes_and_who_is_below() -> None:
    lines = (
        "UID  PID  PPID  C  TTY  STIME  TIME  CMD",
        "0  2  0  1  ?  10:36  10ms  sleep",
        "0 8 0 7 ? 1 30ms sh",
        "0 9 8 2 ? 1 1 s",
        "0 10 9 2 ? 1 1 s",
    )
    text = "\n".join(lines)
    parents = parse_processes(text)
    assert parents == {2: 0, 8: 0, 9: 8, 10: 9}
    assert descendants(parents, 8) == {9, 10}
    assert descendants(parents, 2) == set()
    assert descendants({1: 1}, 1) == set()


def judged(verbs: str = "", *, hook_ran: bool = False, **changes: Any) -> Mapping[Ability, Any]:
    made = RunscSettings("h", Path("/x"), Path("/r"), **changes)
    return judge(made, frozenset(verbs.split()), Outcome("a trial sandbox ran", hook_ran))


def test_each_ability_has_an_answer_with_its_reason() -> None:
    found = judged()
    assert set(found) == set(Ability)
    assert all(feature.detail for feature in found.values())


@pytest.mark.parametrize(
    ("ability", "given", "support"),
    [
        (Ability.PORT_FORWARD, {}, Support.EMULATED),
        (Ability.PORT_FORWARD, {"network": "host"}, Support.SUPPORTED),
        (Ability.PORT_FORWARD, {"verbs": "port-forward"}, Support.SUPPORTED),
        (Ability.HOST_NETWORK, {}, Support.UNSUPPORTED),
        (Ability.HOST_NETWORK, {"network": "host"}, Support.SUPPORTED),
        (Ability.SECCOMP, {}, Support.UNSUPPORTED),
        (Ability.SECCOMP, {"seccomp": True}, Support.EMULATED),
        (Ability.SYSTEMD_CGROUP, {}, Support.UNSUPPORTED),
        (Ability.SYSTEMD_CGROUP, {"systemd_cgroup": True}, Support.SUPPORTED),
        (Ability.START_CONTAINER_HOOKS, {}, Support.UNSUPPORTED),
        (Ability.START_CONTAINER_HOOKS, {"hook_ran": True}, Support.SUPPORTED),
        (Ability.UPDATE, {"verbs": "update"}, Support.UNSUPPORTED),
    ],
)
def test_abilities_follow_what_was_seen(ability: Ability, given: dict[str, Any], support: Support) -> None:
    assert judged(**given)[ability].support is support


def test_what_runsc_has_state_of(tmp_path: Path) -> None:
    member, pod = "a" * 64, "b" * 64
    runsc = Runsc(RunscSettings("h", Path("/x"), tmp_path / "root"))
    assert runsc.known() == []
    (tmp_path / "root").mkdir()
    for name in (f"{pod}_sandbox:{pod}.state", f"{pod}_sandbox:{pod}.lock", f"{member}_sandbox:{pod}.state", "runsc.sock", "x.state"):
        (tmp_path / "root" / name).touch()
    assert runsc.known() == [(member, pod), (pod, pod)], "a sandbox comes after its members"
    assert runsc.knows(member)
    assert not runsc.knows("c" * 64)


def test_limits_depend_on_version_and_network() -> None:
    old, new, spec = "runsc version 0.0~20221219.0", "runsc version 0.0~20240729.0", "port-forward-to-localhost"
    assert "exec-leaves-nothing" in limits(GvisorOptions(), new)
    assert spec not in limits(GvisorOptions(network="host"), new)
    assert "seccomp" not in limits(GvisorOptions(), new)
    assert "exec" in limits(GvisorOptions(oci_seccomp=True), new)["seccomp"]
    assert "EAGAIN" in limits(GvisorOptions(network="host"), old)[spec]
    assert "no port-forward" in limits(GvisorOptions(), old)[spec]
