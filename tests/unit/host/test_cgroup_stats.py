"""Statistics out of recorded trees: Linux 6.18, cgroup v1 and v2, with and without swap accounting and pressure."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import cgroup_stats
from bridge.host.cgroup_paths import CgroupLayout, CgroupMount
from bridge.host.cgroup_stats import Memory, Pressure, Pressures, Swap, keyed, pressure

PSI = "some avg10=1.50 avg60=0.25 avg300=0.05 total=1234\nfull avg10=0.10 avg60=0.00 avg300=0.00 total=7\n"
V1 = {
    "cpuacct/p/cpuacct.usage": "123456789\n",
    "memory/p/memory.usage_in_bytes": "10485760\n",
    "memory/p/memory.limit_in_bytes": "67108864\n",
    "memory/p/memory.stat": "cache 1\nrss 2\ntotal_cache 4096\ntotal_rss 8192\ntotal_inactive_file 1048576\ntotal_pgfault 70\n"
    "total_pgmajfault 3\ntotal_swap 2048\n",
    "memory/p/memory.memsw.usage_in_bytes": "10487808\n",
    "memory/p/memory.memsw.limit_in_bytes": "83886080\n",
    "pids/p/pids.current": "5\n",
    "unified/p/cpu.pressure": PSI,
    "unified/p/cgroup.events": "populated 1\nfrozen 0\n",
}
V2 = {
    "p/cpu.stat": "usage_usec 123456\nuser_usec 100000\nsystem_usec 23456\nnr_periods 0\n",
    "p/memory.current": "10485760\n",
    "p/memory.max": "67108864\n",
    "p/memory.stat": "anon 8192\nfile 4096\ninactive_file 1048576\npgfault 70\npgmajfault 3\n",
    "p/memory.swap.current": "2048\n",
    "p/memory.swap.max": "16777216\n",
    "p/pids.current": "5\n",
    "p/cpu.pressure": PSI,
    "p/memory.pressure": PSI,
    "p/io.pressure": PSI,
}
MEMORY = Memory(usage=10485760, working_set=9437184, rss=8192, page_faults=70, major_page_faults=3, limit=67108864)
PRESSURES = Pressures(Pressure(1.5, 0.25, 0.05, 1_234_000), Pressure(0.1, 0.0, 0.0, 7000))


def recorded(root: Path, files: dict[str, str], *, v2: bool) -> CgroupLayout:
    for name, text in files.items():
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)
    if v2:
        return CgroupLayout({"": CgroupMount(root)})
    mounts = {name: CgroupMount(root / name) for name in ("cpuacct", "memory", "pids")}
    return CgroupLayout({**mounts, "": CgroupMount(root / "unified")})


def test_v1(tmp_path: Path) -> None:
    found = cgroup_stats.read("/p", on=recorded(tmp_path, V1, v2=False))
    assert (found.cpu_ns, found.memory, found.swap, found.processes) == (123456789, MEMORY, Swap(2048, 16777216), 5)
    assert (found.cpu_pressure, found.memory_pressure, found.io_pressure) == (PRESSURES, None, None)
    assert found.memory is not None
    assert found.memory.available == 67108864 - 9437184


def test_the_pressure_of_an_empty_cgroup_beside_those_of_v1_is_none(tmp_path: Path) -> None:
    """A hybrid host's runsc puts its sandbox into the hierarchies of v1 alone: of the other one the kernel would tell zeros."""
    files = V1 | {"unified/p/cgroup.events": "populated 0\nfrozen 0\n"}
    assert cgroup_stats.read("/p", on=recorded(tmp_path, files, v2=False)).cpu_pressure is None


def test_v2(tmp_path: Path) -> None:
    found = cgroup_stats.read("/p", on=recorded(tmp_path, V2, v2=True))
    assert (found.cpu_ns, found.memory, found.swap, found.processes) == (123456000, MEMORY, Swap(2048, 16777216), 5)
    assert (found.cpu_pressure, found.memory_pressure, found.io_pressure) == (PRESSURES, PRESSURES, PRESSURES)


@pytest.mark.parametrize("v2", [False, True])
def test_no_limit_and_no_swap_accounting(tmp_path: Path, v2: bool) -> None:
    files = {name: text for name, text in (V2 if v2 else V1).items() if "sw" not in name}
    files["memory/p/memory.stat"] = V1["memory/p/memory.stat"].replace("total_swap 2048\n", "")
    files["p/memory.max" if v2 else "memory/p/memory.limit_in_bytes"] = "max\n" if v2 else "9223372036854771712\n"
    found = cgroup_stats.read("/p", on=recorded(tmp_path, files, v2=v2))
    assert found.memory is not None
    assert (found.memory.limit, found.memory.available, found.swap) == (None, None, None)


@pytest.mark.parametrize("v2", [False, True])
def test_a_cgroup_that_is_gone_uses_nothing(tmp_path: Path, v2: bool) -> None:
    found = cgroup_stats.read("/gone", on=recorded(tmp_path, V2 if v2 else V1, v2=v2))
    assert (found.cpu_ns, found.memory, found.swap, found.processes, found.cpu_pressure) == (None,) * 5


def test_unlimited_swap_on_v2(tmp_path: Path) -> None:
    found = cgroup_stats.read("/p", on=recorded(tmp_path, {**V2, "p/memory.swap.max": "max\n"}, v2=True))
    assert found.swap == Swap(2048, None)


def test_a_file_that_may_not_be_read_is_an_error(tmp_path: Path) -> None:
    layout = recorded(tmp_path, V2, v2=True)
    (tmp_path / "p/memory.current").unlink()
    (tmp_path / "p/memory.current").symlink_to("memory.current")
    with pytest.raises(HostError, match=r"memory\.current"):
        cgroup_stats.read("/p", on=layout)


def test_pressure_of_older_kernels_has_no_full_line_for_cpu() -> None:
    found = pressure(b"some avg10=0.00 avg60=0.00 avg300=0.00 total=9\n")
    assert found == Pressures(Pressure(0.0, 0.0, 0.0, 9000), None)
    assert pressure(b"") is None


def test_lines_of_a_keyed_file() -> None:
    text = b"anon 1\nfile 2\ninactive_anon 3\nb max\nlast 4"
    assert [keyed(text, name) for name in (b"anon", b"file", b"last")] == [1, 2, 4]
    assert [keyed(text, name) for name in (b"inactive", b"b", b"absent", b"non")] == [None] * 4
    assert keyed(b"", b"anon") is None


@pytest.mark.parametrize("v2", [False, True])
def test_lines_that_a_kernel_does_not_have_are_unknown_not_zero(tmp_path: Path, v2: bool) -> None:
    name = "p/memory.stat" if v2 else "memory/p/memory.stat"
    found = cgroup_stats.read("/p", on=recorded(tmp_path, {**(V2 if v2 else V1), name: "other 1\n"}, v2=v2))
    assert found.memory == Memory(10485760, limit=67108864)
    assert found.memory.available is None
