"""Facts read from recorded trees of cgroup v1 and v2 hosts."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host.facts import CAPABILITIES, gather

ALL = (1 << len(CAPABILITIES)) - 1
SYS_RESOURCE = 1 << 24


def _tree(root: Path, **files: str) -> Path:
    base = {
        "proc/self/status": f"Name:\tx\nCapPrm:\t{ALL:016x}\nCapEff:\t{ALL:016x}\nCapBnd:\t{ALL:016x}\n",
        "proc/self/oom_score_adj": "-500\n",
        "proc/sys/kernel/hostname": "node-7\n",
        "proc/sys/kernel/seccomp/actions_avail": "kill_process allow\n",
    }
    for name, content in {**base, **files}.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(content)
    for size in ("hugepages-2048kB", "hugepages-1048576kB", "hugepages-64kB"):
        (root / "sys/kernel/mm/hugepages" / size).mkdir(parents=True, exist_ok=True)
    return root


def test_cgroup_v2_host(tmp_path: Path) -> None:
    files = {
        "sys/fs/cgroup/cgroup.controllers": "cpu memory hugetlb\n",
        "sys/fs/cgroup/system.slice/memory.swap.max": "max\n",
        "sys/module/apparmor/parameters/enabled": "Y\n",
        "sys/fs/selinux/enforce": "1",
    }
    assert not gather(_tree(tmp_path, **files)).apparmor  # securityfs is not mounted
    (tmp_path / "sys/kernel/security/apparmor").mkdir(parents=True)
    facts = gather(_tree(tmp_path, **files), "aarch64")
    assert facts.cgroup_v2
    assert facts.swap_accounting
    assert facts.hugepage_sizes == ("64KB", "2MB", "1GB")
    assert (facts.apparmor, facts.selinux, facts.seccomp) == (True, True, True)
    assert facts.architecture == "arm64"
    assert (facts.oom_score_adj, facts.can_lower_oom_score, facts.hostname) == (-500, True, "node-7")
    assert facts.capabilities == frozenset(CAPABILITIES)


def test_cgroup_v1_host_without_extras(tmp_path: Path) -> None:
    bounding = ALL & ~SYS_RESOURCE
    status = f"CapPrm:\t{ALL:x}\nCapEff:\t{bounding:x}\nCapBnd:\t{bounding:x}\n"
    tree = _tree(tmp_path, **{"proc/self/status": status, "sys/module/apparmor/parameters/enabled": "N\n"})
    (tree / "proc/sys/kernel/seccomp/actions_avail").unlink()
    facts = gather(tree, "x86_64")
    assert not any((facts.cgroup_v2, facts.swap_accounting, facts.apparmor, facts.selinux, facts.seccomp))
    assert facts.hugepage_sizes == ()
    assert facts.capabilities == frozenset(CAPABILITIES) - {"CAP_SYS_RESOURCE"}
    assert not facts.can_lower_oom_score
    assert facts.architecture == "amd64"


def test_cgroup_v1_controllers(tmp_path: Path) -> None:
    files = {"sys/fs/cgroup/memory/memory.memsw.limit_in_bytes": "1", "sys/fs/cgroup/hugetlb/hugetlb.2MB.limit_in_bytes": "1"}
    facts = gather(_tree(tmp_path, **files))
    assert facts.swap_accounting
    assert "2MB" in facts.hugepage_sizes


def test_what_exists_but_cannot_be_read_is_an_error(tmp_path: Path) -> None:
    tree = _tree(tmp_path)
    (tree / "proc/self/oom_score_adj").unlink()
    (tree / "proc/self/oom_score_adj").mkdir()
    with pytest.raises(HostError, match="oom_score_adj"):
        gather(tree)


def test_this_host() -> None:
    facts = gather()
    assert facts.capabilities <= frozenset(CAPABILITIES)
    assert facts.hostname


def test_nofile(tmp_path: Path) -> None:
    limits = tmp_path / "proc/self/limits"
    limits.parent.mkdir(parents=True)
    limits.write_text("Limit      Soft Limit   Hard Limit   Units\nMax open files      1024       524288     files\n")
    assert gather(tmp_path).nofile == (1024, 524288)
    limits.write_text("Max open files            unlimited            unlimited            files\n")
    assert gather(tmp_path).nofile is None


def test_processors_memory_nodes_and_controllers(tmp_path: Path) -> None:
    files = {
        "sys/devices/system/cpu/present": "0-3,8\n",
        "sys/devices/system/node/online": "0\n",
        "sys/fs/cgroup/cgroup.controllers": "cpu memory\n",
    }
    facts = gather(_tree(tmp_path, **files))
    assert [set(each) for each in (facts.cpus, facts.memory_nodes)] == [{0, 1, 2, 3, 8}, {0}]
    assert facts.controllers == {"cpu", "memory"}
    assert gather(_tree(tmp_path / "bare")).cpus == frozenset()
    (tmp_path / "sys/devices/system/cpu/present").write_text("all\n")
    with pytest.raises(HostError, match=r"cpu/present says 'all'"):
        gather(tmp_path)
