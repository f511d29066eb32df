"""AppArmor on recorded hosts, with a parser that writes down what it is told."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError, Unsupported
from bridge.host.apparmor import enabled, has_policy_file, load, loaded, own_label

PROFILES = """/usr/sbin/ntpd (enforce)
cri-bridge-default (enforce)
snap.firefox (a b) (complain)
k8s-apparmor-example-deny-write (kill)
"""


def tree(root: Path, profiles: str | None = PROFILES, parser: str | None = "cat > {root}/got; echo $@ >> {root}/got") -> Path:
    securityfs, switch = root / "sys/kernel/security/apparmor", root / "sys/module/apparmor/parameters/enabled"
    securityfs.mkdir(parents=True)
    switch.parent.mkdir(parents=True)
    switch.write_text("Y\n")
    if profiles is not None:
        (securityfs / "profiles").write_text(profiles)
    if parser is not None:
        (root / "sbin").mkdir()
        program = root / "sbin/apparmor_parser"
        program.write_text("#!/bin/sh\n" + parser.format(root=root) + "\n")
        program.chmod(0o755)
    return root


async def test_loaded_profiles(tmp_path: Path) -> None:
    expected = {"/usr/sbin/ntpd", "cri-bridge-default", "snap.firefox (a b)", "k8s-apparmor-example-deny-write"}
    assert await loaded(tree(tmp_path)) == expected


def test_enabled(tmp_path: Path) -> None:
    assert not enabled(tmp_path)
    assert enabled(tree(tmp_path))
    (tmp_path / "sys/module/apparmor/parameters/enabled").write_text("N\n")
    assert not enabled(tmp_path)


async def test_securityfs_is_not_mounted(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="apparmor/profiles"):
        await loaded(tmp_path)


async def test_loading_goes_by_standard_input(tmp_path: Path) -> None:
    root = tree(tmp_path)
    await load("profile x {}\n", root)
    assert (root / "got").read_text() == "profile x {}\n-K -r\n"


async def test_a_parser_that_fails_says_why(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=r"exit code 3.*syntax error in line 1"):
        await load("x", tree(tmp_path, parser="echo 'syntax error\nin line 1' >&2; exit 3"))


async def test_no_parser(tmp_path: Path) -> None:
    with pytest.raises(Unsupported, match="apparmor_parser"):
        await load("x", tree(tmp_path, parser=None))


def test_policy_files_and_our_own_label(tmp_path: Path) -> None:
    (tmp_path / "etc/apparmor.d/abi").mkdir(parents=True)
    (tmp_path / "etc/apparmor.d/abi/3.0").touch()
    assert has_policy_file("abi/3.0", tmp_path)
    assert not has_policy_file("tunables/global", tmp_path)
    assert own_label(tmp_path) == "unconfined"
    (tmp_path / "proc/self/attr").mkdir(parents=True)
    (tmp_path / "proc/self/attr/current").write_text("my-daemon (enforce)\n")
    assert own_label(tmp_path) == "my-daemon"
    (tmp_path / "proc/self/attr/current").write_text("unconfined\n")
    assert own_label(tmp_path) == "unconfined"
