"""Doctor on CDI specs, hooks, base specs and additional devices of a recorded host."""

from __future__ import annotations

import json
from pathlib import Path

from bridge.cli import doctor_additions
from bridge.cli.findings import Finding, Host, State
from bridge.config import Config
from tests.unit.cli.test_doctor import named, write

CDI = {"cdiVersion": "0.5.0", "kind": "v.com/c", "devices": [{"name": "x", "containerEdits": {"env": ["A=1"]}}]}
HOOK = {"version": "1.0.0", "hook": {"path": "/usr/bin/hook"}, "when": {"always": True}, "stages": ["poststop"]}


def examine(root: Path, **runtime: object) -> list[Finding]:
    return list(doctor_additions.check(Host(root), Config.model_validate({"runtime": runtime})))


def test_a_host_without_any_of_it_is_well(tmp_path: Path) -> None:
    assert {one.state for one in examine(tmp_path)} == {State.OK}


def test_what_is_there_is_listed(tmp_path: Path) -> None:
    write(tmp_path, "etc/cdi/v.json", json.dumps(CDI))
    write(tmp_path, "etc/containers/oci/hooks.d/h.json", json.dumps(HOOK))
    write(tmp_path, "usr/bin/hook", executable=True)
    write(tmp_path, "etc/base.json", "{}")
    write(tmp_path, "dev/fuse")
    found = examine(tmp_path, handlers={"runc": {"base_spec": "/etc/base.json"}}, additional_devices=["/dev/fuse"])
    assert {one.state for one in found} == {State.OK}
    assert named(found, "CDI devices").detail == "v.com/c=x"
    assert named(found, "OCI hooks").detail == "/etc/containers/oci/hooks.d/h.json"


def test_what_is_wrong_is_said_with_its_remedy(tmp_path: Path) -> None:
    for name in ("a", "b"):
        write(tmp_path, f"etc/cdi/{name}.json", json.dumps(CDI))
    write(tmp_path, "var/run/cdi/bad.json", "{}")
    write(tmp_path, "etc/containers/oci/hooks.d/h.json", json.dumps(HOOK))
    write(tmp_path, "etc/containers/oci/hooks.d/old.json", '{"hook": "/x"}')
    write(tmp_path, "etc/base.json", '{"mounts": 1}')
    handlers = {"runc": {"base_spec": "/etc/base.json"}, "crun": {"base_spec": "/etc/absent.json"}}
    found = examine(tmp_path, handlers=handlers, additional_devices=["/dev/fuse:/dev/f:r"])
    assert named(found, "/etc/cdi/b.json").detail == "v.com/c=x is given by /etc/cdi/a.json too, so nobody gets it"
    assert named(found, "/var/run/cdi/bad.json").detail == "is not used: cdiVersion: is missing"
    assert "version: None is not '1.0.0'" in named(found, "/etc/containers/oci/hooks.d/old.json").detail
    assert "/usr/bin/hook can't be executed" in named(found, "/etc/containers/oci/hooks.d/h.json").detail
    assert "mounts: must be a list" in named(found, "base spec of runc").detail
    assert "No such file" in named(found, "base spec of crun").detail
    states = {one.name: one.state for one in found}
    assert (states["base spec of runc"], states["base spec of crun"]) == (State.MISSING, State.ADVICE)
    assert states["/dev/fuse:/dev/f:r"] is State.MISSING
    assert all(one.mend for one in found if one.state is not State.OK)


def test_the_program_of_a_startcontainer_hook_is_the_containers(tmp_path: Path) -> None:
    write(tmp_path, "etc/containers/oci/hooks.d/h.json", json.dumps({**HOOK, "stages": ["startContainer"]}))
    assert {one.state for one in examine(tmp_path)} == {State.OK}
