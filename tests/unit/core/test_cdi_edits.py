"""CDI edits in an OCI spec: order, replacement and defaults as in the reference implementation; nodes looked up on the host."""

from __future__ import annotations

import copy
import os
import stat
from pathlib import Path
from typing import Any

import pytest

from bridge.core.cdi_edits import apply, completed
from bridge.core.cdi_spec import Edits
from bridge.errors import InvalidRequest

SPEC: dict[str, Any] = {
    "process": {"env": ["PATH=/bin", "A=old"], "user": {"uid": 1000, "gid": 2000, "additionalGids": [5]}, "args": ["x"]},
    "mounts": [{"destination": "/proc"}, {"destination": "/dev"}, {"destination": "/dev/shm", "source": "ours"}],
    "linux": {
        "devices": [{"path": "/dev/a", "type": "c", "major": 1, "minor": 1}, {"path": "/dev/b", "type": "c", "major": 1, "minor": 2}],
        "resources": {"devices": [{"allow": False, "access": "rwm"}], "pids": {"limit": 7}},
    },
}


def edited(edits: Edits, nodes: tuple[dict[str, Any], ...] = (), *, spec: dict[str, Any] | None = None, **how: bool) -> dict[str, Any]:
    before = copy.deepcopy(spec or SPEC)
    given = copy.deepcopy(before)
    made = apply(given, edits, nodes, **{"user_namespace": False, "id_mapped": False, **how})
    assert given == before, "the spec that is given stays as it is"
    return made


def test_a_variable_that_is_there_keeps_its_place() -> None:
    assert edited(Edits(env=("A=new", "B=1", "B=2")))["process"]["env"] == ["PATH=/bin", "A=new", "B=2"]


def test_a_node_replaces_one_of_its_path_belongs_to_the_user_and_gets_its_rule() -> None:
    nodes = (
        {"path": "/dev/a", "hostPath": "/dev/h", "type": "b", "major": 8, "minor": 0, "fileMode": 0o600, "permissions": "r"},
        {"path": "/dev/c", "hostPath": "/dev/c", "type": "c", "major": 9, "minor": 3, "uid": 0, "gid": 6, "permissions": "none"},
        {"path": "/dev/p", "hostPath": "/dev/p", "type": "p"},
    )
    linux = edited(Edits(nodes=nodes), nodes)["linux"]
    assert linux["devices"] == [
        {"path": "/dev/b", "type": "c", "major": 1, "minor": 2},
        {"path": "/dev/a", "type": "b", "major": 8, "minor": 0, "fileMode": 0o600, "uid": 1000, "gid": 2000},
        {"path": "/dev/c", "type": "c", "major": 9, "minor": 3, "uid": 0, "gid": 6},
        {"path": "/dev/p", "type": "p", "uid": 1000, "gid": 2000},
    ]
    assert linux["resources"] == {
        "devices": [{"allow": False, "access": "rwm"}, {"allow": True, "type": "b", "major": 8, "minor": 0, "access": "r"}],
        "pids": {"limit": 7},
    }, "no rule for none, nor for a fifo"


def test_a_node_of_a_root_container_has_no_owner_of_its_own() -> None:
    spec = copy.deepcopy(SPEC)
    spec["process"]["user"] = {"uid": 0, "gid": 0}
    nodes = ({"path": "/dev/c", "hostPath": "/dev/c", "type": "c", "major": 9, "minor": 3},)
    linux = edited(Edits(nodes=nodes), nodes, spec=spec)["linux"]
    assert linux["devices"][-1] == {"path": "/dev/c", "type": "c", "major": 9, "minor": 3}
    assert linux["resources"]["devices"][-1]["access"] == "rwm"


def test_mounts_replace_those_of_their_place_and_stand_behind_their_parents() -> None:
    mounts = (
        {"hostPath": "/h/deep", "containerPath": "/opt/v/deep", "options": ["ro", "bind"]},
        {"hostPath": "tmpfs", "containerPath": "/dev/shm", "type": "tmpfs"},
        {"hostPath": "/h", "containerPath": "/opt", "options": ["rbind"]},
    )
    assert edited(Edits(mounts=mounts))["mounts"] == [
        {"destination": "/proc"},
        {"destination": "/dev"},
        {"destination": "/opt", "source": "/h", "type": "bind", "options": ["rbind"]},
        {"destination": "/dev/shm", "source": "tmpfs", "type": "tmpfs"},
        {"destination": "/opt/v/deep", "source": "/h/deep", "type": "bind", "options": ["ro", "bind"]},
    ]


@pytest.mark.parametrize(
    ("mount", "options"),
    [
        ({"options": ["bind"]}, ["bind", "idmap"]),
        ({"options": ["rbind", "ro"]}, ["rbind", "ro", "ridmap"]),
        ({"type": "bind"}, ["idmap"]),
        ({"options": ["rbind", "idmap"]}, ["rbind", "idmap"]),
        ({"type": "tmpfs", "options": ["size=1m"]}, ["size=1m"]),
    ],
)
def test_bind_mounts_of_a_user_namespace_map_their_owners_where_the_runtime_can(mount: dict[str, Any], options: list[str]) -> None:
    edits = Edits(mounts=({"hostPath": "/h", "containerPath": "/o", **mount},))
    assert edited(edits, user_namespace=True, id_mapped=True)["mounts"][-2]["options"] == options
    assert "idmap" not in edited(Edits(mounts=({"hostPath": "/h", "containerPath": "/o"},)), user_namespace=True)["mounts"][-2].get(
        "options", []
    )


def test_a_node_of_another_path_is_a_bind_mount_in_a_user_namespace() -> None:
    nodes = (
        {"path": "/dev/c0", "hostPath": "/dev/x0", "type": "c", "major": 9, "minor": 3},
        {"path": "/dev/same", "hostPath": "/dev/same", "type": "c", "major": 9, "minor": 4},
    )
    made = edited(Edits(nodes=nodes), nodes, user_namespace=True)
    assert [device["path"] for device in made["linux"]["devices"]] == ["/dev/a", "/dev/b", "/dev/same"]
    assert {"destination": "/dev/c0", "type": "bind", "source": "/dev/x0", "options": ["bind", "rprivate", "nosuid", "noexec"]} in made[
        "mounts"
    ]
    assert [rule.get("minor") for rule in made["linux"]["resources"]["devices"]] == [None, 3, 4]


def test_hooks_follow_those_of_their_stage() -> None:
    hooks = tuple({"hookName": stage, "path": "/bin/h", "args": ["h", stage]} for stage in ("prestart", "poststop", "createContainer"))
    spec = {**SPEC, "hooks": {"poststop": [{"path": "/first"}]}}
    assert edited(Edits(hooks=hooks), spec=spec)["hooks"] == {
        "poststop": [{"path": "/first"}, {"path": "/bin/h", "args": ["h", "poststop"]}],
        "prestart": [{"path": "/bin/h", "args": ["h", "prestart"]}],
        "createContainer": [{"path": "/bin/h", "args": ["h", "createContainer"]}],
    }


def test_groups_rdt_and_interfaces() -> None:
    edits = Edits(gids=(0, 7, 5, 7), rdt={"closID": "c"}, net_devices=({"hostInterfaceName": "eth7", "name": "net0"},))
    made = edited(edits)
    assert made["process"]["user"]["additionalGids"] == [5, 7], "0 is ignored, as is what is there"
    assert made["linux"]["intelRdt"] == {"closID": "c"}
    assert made["linux"]["netDevices"] == {"eth7": {"name": "net0"}}


def test_of_two_rdt_edits_the_later_counts() -> None:
    assert Edits(rdt={"closID": "a"}).then(Edits(rdt={"closID": "b"})).then(Edits()).rdt == {"closID": "b"}


async def test_a_node_is_completed_from_the_host() -> None:
    (full,) = await completed([{"path": "/dev/inside", "hostPath": "/dev/null"}], "f")
    mode = stat.S_IMODE(os.stat("/dev/null").st_mode)
    assert full == {"path": "/dev/inside", "hostPath": "/dev/null", "type": "c", "major": 1, "minor": 3, "fileMode": mode}


async def test_a_node_that_says_all_need_not_exist_and_keeps_what_it_says() -> None:
    said = {"path": "/dev/absent", "type": "u", "major": 5, "minor": 9, "fileMode": 0}
    assert await completed([said], "f") == [{**said, "hostPath": "/dev/absent", "type": "c"}]
    (other,) = await completed([{"path": "/dev/null", "type": "b", "major": 5}], "f")
    assert (other["type"], other["major"], "fileMode" in other) == ("b", 5, True)


async def test_a_fifo_has_no_numbers(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "p", 0o640)
    (full,) = await completed([{"path": "/dev/p", "hostPath": str(tmp_path / "p")}], "f")
    assert (full["type"], full["major"], full["minor"]) == ("p", 0, 0)


@pytest.mark.parametrize(
    ("node", "words"),
    [
        ({"path": "/dev/absent"}, "device /dev/absent does not exist"),
        ({"path": "/dev/absent", "type": "c"}, "does not exist"),
        ({"path": "/dev/null", "type": "b"}, "is of type b, but /dev/null of type c"),
        ({"path": "/dev/x", "hostPath": "/proc/version"}, "/proc/version is not a device"),
        ({"path": "/dev/fd"}, "/dev/fd is not a device"),
    ],
)
async def test_a_node_that_cannot_be_made_is_refused_naming_the_field(node: dict[str, Any], words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        await completed([node], "config.CDI_devices[0].name")
    assert caught.value.field == "config.CDI_devices[0].name"
