"""Details out of recorded files of Linux 6.18, cgroup v1 and v2."""

from __future__ import annotations

import pytest

from bridge.host import cgroup_details
from bridge.host.cgroup_details import CgroupDetails, CpuDetails, DeviceIo, HugePages, MemoryDetails

V1 = {
    ("cpu", "cpu.stat"): b"nr_periods 12\nnr_throttled 5\nthrottled_time 777\nnr_bursts 0\nburst_time 0\n",
    ("cpuacct", "cpuacct.usage_user"): b"300\n",
    ("cpuacct", "cpuacct.usage_sys"): b"200\n",
    ("memory", "memory.stat"): b"cache 1\npgfault 11\npgmajfault 2\ntotal_cache 4096\ntotal_mapped_file 512\ntotal_inactive_file 64\n"
    b"total_active_file 128\ntotal_pgfault 70\n",
    ("memory", "memory.kmem.usage_in_bytes"): b"900\n",
    ("memory", "memory.max_usage_in_bytes"): b"8000\n",
    ("memory", "memory.failcnt"): b"3\n",
    ("memory", "memory.oom_control"): b"oom_kill_disable 0\nunder_oom 0\noom_kill 1\n",
    ("hugetlb", "hugetlb.2MB.usage_in_bytes"): b"2097152\n",
    ("hugetlb", "hugetlb.2MB.max_usage_in_bytes"): b"4194304\n",
    ("blkio", "blkio.throttle.io_service_bytes_recursive"): b"8:16 Read 4096\n8:16 Write 8192\n8:16 Total 12288\nTotal 12288\n",
    ("blkio", "blkio.throttle.io_serviced_recursive"): b"8:16 Read 1\n8:16 Write 2\n8:16 Total 3\nTotal 3\n",
    ("pids", "pids.max"): b"100\n",
}
V2 = {
    ("", "cpu.stat"): b"usage_usec 5\nuser_usec 3\nsystem_usec 2\nnr_periods 12\nnr_throttled 5\nthrottled_usec 7\n",
    ("", "memory.stat"): b"anon 1\nfile 4096\nkernel 900\nfile_mapped 512\ninactive_file 64\nactive_file 128\n",
    ("", "memory.peak"): b"8000\n",
    ("", "memory.events"): b"low 0\nhigh 0\nmax 3\noom 2\noom_kill 1\noom_group_kill 0\n",
    ("", "hugetlb.2MB.current"): b"2097152\n",
    ("", "io.stat"): b"8:16 rbytes=4096 wbytes=8192 rios=1 wios=2 dbytes=0 dios=0\n254:0 \n",
    ("", "pids.max"): b"max\n",
}


@pytest.fixture(autouse=True)
def huge_pages(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(cgroup_details, "page_sizes", lambda: ("2MB", "1GB"))


def test_v1() -> None:
    assert cgroup_details.from_v1(lambda *key: V1.get(key, b"")) == CgroupDetails(
        cpu=CpuDetails(300, 200, 12, 5, 777),
        memory=MemoryDetails(4096, 512, 128, 64, 900, 8000, 3, 1, own_page_faults=11, own_major_page_faults=2),
        huge_pages={"2MB": HugePages(2097152, 4194304)},
        io=(DeviceIo(8, 16, "Read", 4096, 1), DeviceIo(8, 16, "Write", 8192, 2)),
        threads_limit=100,
    )


def test_v2() -> None:
    assert cgroup_details.from_v2(lambda *key: V2.get(key, b"")) == CgroupDetails(
        cpu=CpuDetails(3000, 2000, 12, 5, 7000),
        memory=MemoryDetails(4096, 512, 128, 64, 900, 8000, 3, 1),
        huge_pages={"2MB": HugePages(2097152)},
        io=(DeviceIo(8, 16, "Read", 4096, 1), DeviceIo(8, 16, "Write", 8192, 2), DeviceIo(8, 16, "Discard", 0, 0)),
    )


@pytest.mark.parametrize("is_v2", [False, True])
def test_nothing_is_zero_that_is_not_told(is_v2: bool) -> None:
    assert cgroup_details.parse(lambda *_: b"", is_v2=is_v2) == CgroupDetails()
