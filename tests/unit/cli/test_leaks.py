"""The leak audit on recorded trees: what is found where, what counts as ours, and what another server's things look like."""

from __future__ import annotations

import dataclasses
import json
import os
import sqlite3
from pathlib import Path

import pytest

from bridge.cli import leak_traces, leaks, lease_places, records_file
from bridge.cli.leak_traces import Places
from bridge.cli.records_file import Recorded
from bridge.config import Config
from bridge.core import records
from bridge.core.entities import Container, ContainerState, Sandbox, SandboxState
from bridge.core.model import ContainerConfig, ContainerMetadata, ImageSpec, PodConfig, PodMetadata
from bridge.core.store import MIGRATIONS
from bridge.errors import CorruptData, HostError
from bridge.host import cgroups
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount, parse_mountinfo

POD, LOST, OTHER, CONTAINER, LOST_CONTAINER = ("a" * 64, "b" * 64, "c" * 64, "d" * 64, "e" * 64)


def sandbox(ident: str) -> Sandbox:
    return Sandbox(ident, PodConfig(PodMetadata("web", ident, "shop")), "runc", "", SandboxState.READY, 1, "boot")


def container(ident: str, owner: str) -> Container:
    config = ContainerConfig(ContainerMetadata("app", 0), ImageSpec("busybox"))
    return Container(ident, owner, config, "sha256:1", "busybox", ContainerState.RUNNING, 1, "boot")


def recorded(**more: object) -> Recorded:
    return Recorded(Path("state.db"), {POD: sandbox(POD)}, {CONTAINER: container(CONTAINER, POD)}, **more)  # type: ignore[arg-type]


def make(path: Path, text: str = "") -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def host(root: Path, hierarchies: str) -> Places:
    """A host with a pod that is known and one that is not, and the cgroups and leases of both and of a third server's."""
    run = root / "run"
    for pod, inside in ((POD, CONTAINER), (LOST, LOST_CONTAINER)):
        make(run / "sandboxes" / pod / "ns" / "net")
        make(run / "sandboxes" / pod / "containers" / inside / "config.json", "{}")
        make(run / "tty" / inside[:32] / "console.sock")
        make(root / "images" / "snapshots" / inside / "upper" / "file")
        make(run / "runtimes" / "runc" / inside / "state.json", "{}")
    make(run / "runtimes" / "runc" / "probe.json", "{}")
    for place in hierarchies.split():
        for pod in (POD, LOST, OTHER):
            make(root / place / "pods" / f"cri-bridge-{pod}" / "cgroup.procs", "")
            make(root / place / "pods.slice" / f"cri-bridge-{pod}.scope" / "cgroup.procs", "")
        make(root / place / "pods" / f"crio-{LOST}" / "cgroup.procs", "")
    for number, pod in enumerate((POD, LOST, OTHER)):
        make(root / "leases" / f"10.0.0.{number}", f"{pod}\r\neth0")
    make(root / "leases" / "last_reserved_ip.0", "10.0.0.2")
    kind = "cgroup2" if hierarchies == "unified" else "cgroup"
    lines = "".join(f"{n} 1 0:{n} / {root}/{place} rw - {kind} {kind} rw,{place}\n" for n, place in enumerate(hierarchies.split(), 40))
    mounted = f"{run}/sandboxes/{LOST}/containers/{LOST_CONTAINER}/rootfs"
    make(root / "mountinfo", f"{lines}70 1 0:70 / {mounted} rw - overlay overlay rw\n71 1 0:71 / {run}/pause rw - tmpfs tmpfs rw\n")
    return Places(run, root / "images" / "snapshots", {root / "leases": "net"}, parse_mountinfo(lines), root / "mountinfo")


@pytest.mark.parametrize("hierarchies", ["memory cpu freezer", "unified"])
def test_what_no_record_owns(tmp_path: Path, hierarchies: str) -> None:
    places = host(tmp_path, hierarchies)
    found = leaks.judge(leak_traces.find(places), recorded())
    assert {leak.id for leak in found} == {LOST, LOST_CONTAINER, LOST_CONTAINER[:32], OTHER}
    certain = sorted((leak.kind, leak.path.replace(str(tmp_path), "")) for leak in found if leak.certain)
    bundle = f"/run/sandboxes/{LOST}/containers/{LOST_CONTAINER}"
    assert certain == sorted(
        [
            ("pod directory", f"/run/sandboxes/{LOST}"),
            ("namespace", f"/run/sandboxes/{LOST}/ns/net"),
            ("bundle", bundle),
            ("mount", f"{bundle}/rootfs"),
            ("socket or file", f"/run/tty/{LOST_CONTAINER[:32]}"),
            ("writable layer", f"/images/snapshots/{LOST_CONTAINER}"),
            ("runtime state", f"/run/runtimes/runc/{LOST_CONTAINER}"),
            ("cgroup", f"/pods/cri-bridge-{LOST}"),
            ("cgroup", f"/pods.slice/cri-bridge-{LOST}.scope"),
            ("address", "/leases/10.0.0.1"),
        ]
    )
    perhaps = {(leak.kind, leak.id) for leak in found if not leak.certain}
    assert perhaps == {("cgroup", OTHER)}, "another server's cgroup is not ours, and its address no business of ours"


def test_what_is_known_is_no_leak(tmp_path: Path) -> None:
    places = host(tmp_path, "unified")
    traces = leak_traces.find(places)
    whole = recorded(unreadable={LOST: "of a newer release", LOST_CONTAINER: "so"}, detachments={OTHER: {"network": "n"}})
    assert leaks.judge(traces, whole) == []


def test_a_record_that_was_set_aside_makes_its_things_ours(tmp_path: Path) -> None:
    traces = [trace for trace in leak_traces.find(host(tmp_path, "unified")) if trace.ident == OTHER]
    found = leaks.judge(traces, recorded(set_aside=[(OTHER, "sandboxes", "it is unreadable")]))
    assert {(leak.kind, leak.certain, leak.why) for leak in found} == {
        ("cgroup", True, "its record was set aside: it is unreadable"),
        ("address", True, "its record was set aside: it is unreadable"),
    }


def database(path: Path) -> None:
    """As a server leaves it: a pod, a container, a record of each kind that can't be read, a debt, one set aside."""
    db = sqlite3.connect(path)
    db.executescript(f"{MIGRATIONS[0]}; PRAGMA user_version=1; PRAGMA journal_mode=WAL")
    db.execute("INSERT INTO sandboxes VALUES (?, 'k', ?)", (POD, records.dumps(sandbox(POD))))
    db.execute("INSERT INTO containers VALUES (?, ?, 'k', ?)", (CONTAINER, POD, records.dumps(container(CONTAINER, POD))))
    db.execute("INSERT INTO sandboxes VALUES (?, 'l', '{}')", (LOST,))
    db.execute("INSERT INTO detachments VALUES (?, ?)", (OTHER, json.dumps({"network": "net", "data": {}})))
    db.execute("INSERT INTO set_aside VALUES ('x', 'containers', '{', 'unreadable')")
    db.commit()
    db.close()


def test_records_are_read_without_a_server(tmp_path: Path) -> None:
    database(tmp_path / "state.db")
    before = (tmp_path / "state.db").read_bytes()
    found = records_file.read(tmp_path, tmp_path / "run")
    assert found.owners == {POD, CONTAINER, LOST, OTHER}
    assert found.about(CONTAINER) == "container app of pod shop/web"
    assert (found.about(POD), found.about(OTHER)) == ("pod shop/web", "")
    assert (list(found.unreadable), found.set_aside, found.faults) == ([LOST], [("x", "containers", "unreadable")], [])
    assert (tmp_path / "state.db").read_bytes() == before


def test_what_could_not_be_removed_is_told(tmp_path: Path) -> None:
    left = dataclasses.replace(container(CONTAINER, POD), state=ContainerState.REMOVING, unremoved="umount: busy")
    whole = Recorded(Path("state.db"), {POD: dataclasses.replace(sandbox(POD), unremoved="DEL hangs")}, {CONTAINER: left})
    assert whole.unremoved == {POD: "DEL hangs", CONTAINER: "umount: busy"}
    found = [leaks._unremoved(ident, why, whole) for ident, why in whole.unremoved.items()]
    assert [(leak.kind, leak.about, leak.certain) for leak in found] == [
        ("pod", "pod shop/web", True),
        ("container", "container app of pod shop/web", True),
    ]
    assert "umount: busy" in found[1].why


def test_the_cgroup_of_a_broken_off_trial_may_be_anybodys(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "cri-bridge-trial-runc-0a0b0c0d").mkdir()
    os.utime(tmp_path / "cri-bridge-trial-runc-0a0b0c0d", (0, 0))
    monkeypatch.setattr(cgroups, "layout", lambda: CgroupLayout({"": CgroupMount(tmp_path)}))
    (found,) = leaks._trials()
    assert (found.kind, found.path, found.certain) == ("cgroup", "/cri-bridge-trial-runc-0a0b0c0d", False)
    assert "the next start of a server removes it" in found.why


def test_the_copy_tells_of_a_database_that_is_gone(tmp_path: Path) -> None:
    database(tmp_path / "state-copy.db")
    assert records_file.read(tmp_path / "absent", tmp_path).owners == {POD, CONTAINER, LOST, OTHER}
    assert records_file.read(tmp_path / "absent", tmp_path / "absent").owners == frozenset()


def test_a_database_that_can_not_be_read(tmp_path: Path) -> None:
    (tmp_path / "state.db").write_bytes(b"no database" * 1000)
    with pytest.raises(CorruptData, match="is damaged"):
        records_file.read(tmp_path, tmp_path)
    (tmp_path / "state.db").unlink()
    (tmp_path / "state.db").mkdir()
    with pytest.raises(HostError, match="can't read"):
        records_file.read(tmp_path, tmp_path)


def test_the_leases_of_the_configured_networks(tmp_path: Path) -> None:
    ipam = {"type": "host-local", "dataDir": str(tmp_path / "here")}
    make(tmp_path / "10-a.conflist", json.dumps({"name": "a", "plugins": [{"type": "bridge", "ipam": ipam}, {"type": "portmap"}]}))
    make(tmp_path / "20-b.conf", json.dumps({"name": "b", "type": "ptp", "ipam": {"type": "host-local"}}))
    make(tmp_path / "30-c.conflist", json.dumps({"name": "c", "plugins": [{"type": "bridge", "ipam": {"type": "dhcp"}}, 7]}))
    make(tmp_path / "40-d.conflist", "{")
    config = Config()
    config = config.model_copy(update={"network": config.network.model_copy(update={"conf_dir": tmp_path})})
    assert lease_places.find(config) == {tmp_path / "here" / "a": "a", Path("/var/lib/cni/networks/b"): "b"}
