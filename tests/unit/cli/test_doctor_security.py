"""Doctor on SELinux and on published holes of the runtimes: by upstream's version, and what a distribution's change log says."""

from __future__ import annotations

import gzip
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

from bridge.cli import advisories, doctor_security
from bridge.cli.advisories import ADVISORIES, parse
from bridge.cli.findings import Finding, Host, State, output_of
from bridge.config import Config
from tests.unit.host.test_apparmor import tree as apparmor_tree
from tests.unit.selinux_trees import tree

NOVEMBER = {"CVE-2025-31133", "CVE-2025-52565", "CVE-2025-52881"}


def host(root: Path, said: Mapping[str, str], *, installed: Sequence[str] = ("runc",)) -> Host:
    """A host with runtimes in /usr/bin, whose programs answer what ``said`` has for the beginning of their command line."""
    for name in installed:
        path = root / "usr/bin" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text("")
        path.chmod(0o755)

    def say(argv: Sequence[str]) -> str:
        line = " ".join(argv)
        return next((answer for start, answer in said.items() if line.startswith(start)), "")

    return Host(root, find=lambda name: f"/usr/bin/{name}" if name in installed else None, say=say)


def findings(where: Host, config: Config | None = None) -> dict[str, Finding]:
    return {one.name: one for one in doctor_security.check(where, config or Config())}


@pytest.mark.parametrize(
    ("loaded", "parser", "wanted", "state", "words"),
    [
        (None, None, "cri-bridge-default", State.OK, "not enabled"),
        ("x (enforce)\ncri-bridge-default (enforce)\n", None, "cri-bridge-default", State.OK, "run under cri-bridge-default"),
        ("x (enforce)\n", "exit 0", "cri-bridge-default", State.OK, "loaded when it is first needed"),
        ("x (enforce)\n", None, "cri-bridge-default", State.ADVICE, "without apparmor_parser"),
        ("x (enforce)\n", "exit 0", "corporate", State.ADVICE, "corporate is not loaded"),
        ("corporate (enforce)\n", None, "corporate", State.OK, "run under corporate"),
        ("x (enforce)\n", "exit 0", "unconfined", State.ADVICE, "no profile by default"),
    ],
)
def test_apparmor(tmp_path: Path, loaded: str | None, parser: str | None, wanted: str, state: State, words: str) -> None:
    if loaded is not None:
        apparmor_tree(tmp_path, loaded, parser)
    config = Config.model_validate({"security": {"apparmor_profile": wanted}})
    found = findings(host(tmp_path, {}), config)["AppArmor"]
    assert (found.state, words in found.detail) == (state, True), found
    assert bool(found.mend) == (state is not State.OK)


def ids(program: str, version: str) -> set[str]:
    return {each.id for each in advisories.of(program, parse(version))}


@pytest.mark.parametrize(
    ("text", "version"),
    [
        ("1.1.5+ds1", (1, 1, 5, 1 << 30)),
        ("runc version 1.1.7-0ubuntu1~22.04.1", (1, 1, 7, 1 << 30)),
        ("1.0.0-rc95", (1, 0, 0, 95)),
        ("1.2.0-rc.3", (1, 2, 0, 3)),
        ("1.2.0-rc.3+dev", (1, 2, 0, 3)),
        ("1.21", (1, 21, 0, 1 << 30)),
        ("1.28.0.0.0.8-f00d", (1, 28, 0, 1 << 30)),
        ("release-20240325.0", (20240325, 0, 0, 1 << 30)),
        ("release-20240325.0-41-g0a1b2c", (20240325, 0, 0, 1 << 30)),
    ],
)
def test_versions(text: str, version: advisories.Version) -> None:
    assert parse(text) == version


def test_no_version() -> None:
    with pytest.raises(ValueError, match="no version"):
        parse("development build")


@pytest.mark.parametrize(
    ("version", "has", "lacks"),
    [
        ("1.0.0-rc6", {"CVE-2019-5736", "CVE-2019-16884", *NOVEMBER}, {"CVE-2024-21626", "CVE-2023-27561"}),
        ("1.0.0-rc7", {"CVE-2019-16884"}, {"CVE-2019-5736"}),
        ("1.0.0-rc94", {"CVE-2021-30465", "CVE-2024-21626"}, {"CVE-2023-27561"}),
        ("1.0.0-rc95", {"CVE-2023-27561"}, {"CVE-2021-30465"}),
        ("1.0.0", {"CVE-2022-29162", "CVE-2023-28642", "CVE-2024-21626"}, {"CVE-2021-30465"}),
        ("1.1.11", {"CVE-2024-21626", "CVE-2024-45310"}, {"CVE-2023-28642"}),
        ("1.1.12", {"CVE-2024-45310", *NOVEMBER}, {"CVE-2024-21626"}),
        ("1.1.14", NOVEMBER, {"CVE-2024-45310"}),
        ("1.2.0-rc.2", {"CVE-2024-45310", *NOVEMBER}, set()),
        ("1.2.0-rc.3", NOVEMBER, {"CVE-2024-45310"}),
        ("1.2.7", NOVEMBER, set()),
        ("1.2.8", {"CVE-2026-41579"}, NOVEMBER),
        ("1.3.0-rc.1", NOVEMBER, set()),
        ("1.3.2", NOVEMBER, set()),
        ("1.3.3", {"CVE-2026-41579"}, NOVEMBER),
        ("1.4.0-rc.2", NOVEMBER, set()),
        ("1.4.0-rc.3", {"CVE-2026-41579"}, NOVEMBER),
    ],
)
def test_holes_of_runc_by_version(version: str, has: set[str], lacks: set[str]) -> None:
    found = ids("runc", version)
    assert has <= found
    assert not lacks & found


@pytest.mark.parametrize("version", ["1.3.6", "1.4.3", "1.5.0", "1.5.0-rc.3", "2.0.0"])
def test_releases_of_runc_without_known_holes(version: str) -> None:
    assert ids("runc", version) == set()


def test_holes_of_the_others_by_version() -> None:
    assert ids("crun", "1.8.1") == {"CVE-2025-24965", "CVE-2026-30892", "CVE-2026-47766"}
    assert ids("crun", "1.28") == set()
    assert "CVE-2022-27650" in ids("crun", "1.4.3")
    assert "CVE-2022-27650" not in ids("crun", "1.4.4")
    assert ids("crun", "1.25") & NOVEMBER == set()  # its maintainers tried the reproducers: not affected
    assert ids("runsc", "release-20240318.0") == {"CVE-2025-2713"}
    assert ids("runsc", "release-20240325.0") == set()
    assert ids("youki", "0.1.0") == set()


def test_the_table_is_well_formed() -> None:
    for each in ADVISORIES:
        assert each.ranges
        for first, fixed in each.ranges:
            assert parse(first or "0.0") < parse(fixed), each
    keys = [(each.program, each.id) for each in ADVISORIES]
    assert len(keys) == len(set(keys))


def debian(root: Path, *, changelog: str | None) -> Host:
    if changelog is not None:
        path = root / "usr/share/doc/runc/changelog.Debian.gz"
        path.parent.mkdir(parents=True)
        path.write_bytes(gzip.compress(changelog.encode()))
    said = {
        "/usr/bin/runc --version": "runc version 1.1.5+ds1\ncommit: 1.1.5+ds1-1+deb12u1\nspec: 1.0.2-dev\n",
        "dpkg-query --search /usr/bin/runc": "runc: /usr/bin/runc\n",
        "dpkg-query --show": "1.1.5+ds1-1+deb12u1",
    }
    return host(root, said)


def test_a_distributions_fix_counts_and_its_silence_is_told(tmp_path: Path) -> None:
    found = findings(debian(tmp_path, changelog="runc (1.1.5+ds1-1+deb12u1)\n  * CVE-2024-21626: leaked fds\n"))
    mended = found["runc CVE-2024-21626"]
    assert (mended.state, mended.detail) == (State.OK, "mended by the distribution: the change log of runc 1.1.5+ds1-1+deb12u1 names it")
    open_one = found["runc CVE-2025-31133"]
    assert open_one.state is State.ADVICE
    for word in ("host takeover", "1.1.5+ds1 has it upstream", "1.2.8, 1.3.3", "runc 1.1.5+ds1-1+deb12u1", "doesn't name it"):
        assert word in open_one.detail
    assert "CVE-2025-31133" in open_one.mend


def test_a_number_that_begins_alike_is_another_hole(tmp_path: Path) -> None:
    found = findings(debian(tmp_path, changelog="* CVE-2024-216260\n"))
    assert found["runc CVE-2024-21626"].state is State.ADVICE


@pytest.mark.parametrize("damaged", [False, True])
def test_without_a_change_log_it_says_so(tmp_path: Path, damaged: bool) -> None:
    where = debian(tmp_path, changelog="x" if damaged else None)
    if damaged:
        (tmp_path / "usr/share/doc/runc/changelog.Debian.gz").write_bytes(b"not gzip")
    assert "its change log isn't installed" in findings(where)["runc CVE-2024-21626"].detail


def test_a_package_that_lists_the_path_before_usr_was_merged(tmp_path: Path) -> None:
    said = {
        "/usr/bin/runc --version": "runc version 1.1.11\n",
        "dpkg-query --search /bin/runc": "runc: /bin/runc\n",
        "dpkg-query --show": "1.1.11-1",
    }
    assert "runc 1.1.11-1" in findings(host(tmp_path, said))["runc CVE-2024-21626"].detail


def test_an_rpm_package(tmp_path: Path) -> None:
    said = {
        "/usr/bin/crun --version": "crun version 1.4.3\ncommit: f8a096\nspec: 1.0.0\n",
        "rpm --query --file": "crun 1.4.3-2.el9",
        "rpm --query --changelog crun": "* Mon Apr 4 2022\n- fix CVE-2022-27650\n",
    }
    found = findings(host(tmp_path, said, installed=["crun"]))
    assert found["crun CVE-2022-27650"].detail == "mended by the distribution: the change log of crun 1.4.3-2.el9 names it"


def test_a_binary_that_no_package_owns(tmp_path: Path) -> None:
    said = {"/usr/bin/runc --version": "runc version 1.1.11\n", "rpm --query --file": "file /usr/bin/runc is not owned by any package"}
    found = findings(host(tmp_path, said))["runc CVE-2024-21626"]
    assert "no package owns the binary" in found.detail
    assert found.mend == "install runc 1.1.12 or newer"


def test_what_the_server_itself_prevents_is_no_complaint(tmp_path: Path) -> None:
    found = findings(host(tmp_path, {"/usr/bin/runc --version": "runc version 1.3.5\n"}))
    assert found["runc CVE-2026-41579"].state is State.OK
    assert "this server refuses images whose /dev" in found["runc CVE-2026-41579"].detail


def test_one_binary_of_two_handlers_is_judged_once_and_disabled_ones_not_at_all(tmp_path: Path) -> None:
    said = {"/usr/bin/runc --version": "runc version 1.5.0\n", "/usr/bin/crun --version": "crun version 1.0\n"}
    handlers = {"again": {"plugin": "runc", "options": {"path": "/usr/bin/runc"}}, "crun": {"enabled": False}}
    config = Config.model_validate({"runtime": {"handlers": handlers}})
    found = [
        one
        for one in doctor_security.check(host(tmp_path, said, installed=["runc", "crun"]), config)
        if one.name not in ("SELinux", "AppArmor")
    ]
    assert [(one.name, one.state, one.detail) for one in found] == [("runc", State.OK, "1.5.0: no published hole is known")]


def test_an_unreleased_version_can_t_be_judged(tmp_path: Path) -> None:
    found = findings(host(tmp_path, {"/usr/bin/runc --version": "runc version master\n"}))
    assert "can't be looked up" in found["runc"].detail


def test_programs_that_fail_or_are_absent_say_nothing() -> None:
    assert output_of(["sh", "-c", "echo out; echo err >&2"]) == "out\n"
    assert output_of(["sh", "-c", "echo out; exit 1"]) == ""
    assert output_of(["/nonexistent/program"]) == ""


@pytest.mark.parametrize(
    ("enforce", "setting", "contexts", "state", "words"),
    [
        (None, "auto", True, State.OK, "disabled"),
        (None, "on", True, State.MISSING, "the server won't start"),
        ("1", "auto", True, State.OK, "enforcing; pods run as system_u:system_r:container_t:s0 with categories"),
        ("0", "auto", True, State.OK, "permissive; pods"),
        ("1", "off", True, State.ADVICE, "security.selinux is off"),
        ("1", "auto", False, State.ADVICE, "no contexts for containers"),
        ("1", "on", False, State.MISSING, "no contexts for containers"),
    ],
)
def test_selinux(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, enforce: str | None, setting: str, contexts: bool, state: State, words: str
) -> None:
    root = tree(tmp_path, enforce=enforce) if contexts else tree(tmp_path, enforce=enforce, contexts="")
    monkeypatch.setattr("bridge.host.selinux.known", lambda context, where: False)
    config = Config.model_validate({"security": {"selinux": setting}})
    found = findings(host(root, {}, installed=[]), config)["SELinux"]
    assert found.state is state
    assert words in found.detail
    assert (found.mend == "") is (state is State.OK)
