"""Where volumes can't be mounted, because the runtime itself works there. Published holes that this shuts are in the names."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from bridge.core import mount_places
from bridge.core.model import ContainerConfig, ImageSpec, MountRequest
from bridge.errors import InvalidRequest
from bridge.host.lookups import Found
from tests.unit.core.spec_cases import config

FIELD = "config.mounts[0].container_path"


def at(path: str, *, tty: bool = False, image: ImageSpec | None = None) -> ContainerConfig:
    return config(mounts=(MountRequest(path, "/data", image=image),), tty=tty)


@pytest.mark.parametrize(
    "path",
    ["/proc/self/attr/exec", "/proc/sys", "/proc/1", "proc/self", "/x/../proc/sys/kernel", "//proc//sys", "/proc/cpuinfo/x", "/proc/keys"],
)
def test_cve_2019_16884_and_2019_19921_and_2025_52881_nothing_is_mounted_within_proc(path: str) -> None:
    with pytest.raises(InvalidRequest) as refused:
        mount_places.check(at(path))
    assert refused.value.field == FIELD


@pytest.mark.parametrize(
    "path", ["/proc/cpuinfo", "/proc/meminfo", "/proc/net/dev", "/process", "/data/proc/self", "/dev/shm", "/dev", "/sys"]
)
def test_other_places_and_what_lxcfs_needs_are_let_be(path: str) -> None:
    mount_places.check(at(path))


def test_cve_2025_52565_a_terminal_has_its_own_dev_pts() -> None:
    mount_places.check(at("/dev/pts"))
    with pytest.raises(InvalidRequest, match=r"terminal") as refused:
        mount_places.check(at("/dev/pts/", tty=True))
    assert refused.value.field == FIELD


@pytest.mark.parametrize("path", ["/dev", "/proc", "dev/"])
def test_cve_2025_31133_an_image_can_t_take_the_place_of_dev_or_proc(path: str) -> None:
    with pytest.raises(InvalidRequest, match="image"):
        mount_places.check(at(path, image=ImageSpec("busybox")))


@pytest.fixture
def data(tmp_path: Path) -> Iterator[Found]:
    fd = os.open(tmp_path, os.O_PATH)
    yield Found(str(tmp_path), os.stat(tmp_path).st_mode, fd)
    os.close(fd)


@pytest.mark.parametrize("place", ["/dev", "/proc", "/./dev/"])
async def test_cve_2025_31133_and_2023_27561_only_the_hosts_own_takes_the_place_of_dev_and_proc(place: str, data: Found) -> None:
    assert mount_places.is_special(place)
    with pytest.raises(InvalidRequest, match="only the host's own") as refused:
        await mount_places.check_source(place, data, FIELD)
    assert refused.value.field == FIELD


@pytest.mark.parametrize("place", ["/dev", "/proc"])
async def test_the_hosts_own_is_let_in(place: str) -> None:
    fd = os.open(place, os.O_PATH)
    try:
        await mount_places.check_source(place, Found(place, os.stat(place).st_mode, fd), FIELD)
    finally:
        os.close(fd)


async def test_elsewhere_anything_goes(data: Found) -> None:
    assert not mount_places.is_special("/data")
    await mount_places.check_source("/data", data, FIELD)


@pytest.mark.parametrize(
    ("links", "path"),
    [
        ({"p": "/proc"}, "/p/self/attr/exec"),
        ({"p": "proc/sys"}, "/p/kernel"),
        ({"a": "b", "b": "../../proc/./x/.."}, "/a/self"),
        ({"d": "/dev"}, "/d"),
        ({"d": "/proc"}, "/d"),
        ({"d": "/dev/pts"}, "/d/"),
    ],
)
async def test_cve_2019_16884_a_link_of_the_image_doesn_t_lead_a_volume_there(tmp_path: Path, links: dict[str, str], path: str) -> None:
    for name in ("proc", "dev"):
        (tmp_path / name).mkdir()
    for name, target in links.items():
        (tmp_path / name).symlink_to(target)
    with pytest.raises(InvalidRequest) as refused:
        await mount_places.check_root(at(path), tmp_path)
    assert refused.value.field == FIELD


@pytest.mark.parametrize("path", ["/data", "/d/x", "/etc/hosts", "/up/../up/x", "/proc/cpuinfo", "/dev"])
async def test_links_to_elsewhere_are_the_images_own_matter(tmp_path: Path, path: str) -> None:
    (tmp_path / "proc").mkdir()
    (tmp_path / "d").symlink_to("/var/data")
    (tmp_path / "up").symlink_to("../../../..")
    await mount_places.check_root(at(path), tmp_path)


async def test_links_without_end_are_refused(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop/x")
    with pytest.raises(InvalidRequest) as refused:
        await mount_places.check_root(at("/loop/x"), tmp_path)
    assert refused.value.field == FIELD
