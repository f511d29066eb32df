"""UpdateRuntimeConfig's pod ranges: which are taken, and when a configuration is made of them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from bridge.errors import ConfigError, HostError, InvalidRequest
from bridge.network.pod_ranges import FILE, parse_ranges
from tests.unit.network.fakeplugins import FakePlugins, MakePod, OpenCni

DUAL = "10.0.0.0/24, 2001:db8::/64"
TEMPLATE = """{
  "cniVersion": "1.0.0", "name": "made",
  "plugins": [{"type": "ptp", "ipam": {
    "type": "host-local", "subnet": "{{.PodCIDR}}",
    "ranges": [{{range $i, $range := .PodCIDRRanges}}{{if $i}}, {{end}}[{"subnet": "{{$range}}"}]{{end}}],
    "routes": [{{range $i, $route := .Routes}}{{if $i}}, {{end}}{"dst": "{{$route}}"}{{end}}]}}]
}
"""


@pytest.fixture
def template(tmp_path: Path) -> Path:
    path = tmp_path / "cni.template"
    path.write_text(TEMPLATE)
    return path


def made(plugins: FakePlugins) -> dict[str, Any]:
    return dict(json.loads((plugins.conf / FILE).read_text())["plugins"][0]["ipam"])


def test_ranges_are_read_as_kubelets_send_them() -> None:
    assert parse_ranges("") == []
    assert parse_ranges("10.244.1.0/24") == ["10.244.1.0/24"]
    assert parse_ranges(DUAL) == ["10.0.0.0/24", "2001:db8::/64"]
    assert parse_ranges("10.0.0.7/24,FD00::1/64") == ["10.0.0.0/24", "fd00::/64"], "a network's address, as host-local wants it"


@pytest.mark.parametrize(
    "text", [",", "10.0.0.0/24,", "10.0.0.0", "10.0.0.0/33", "10.0.0/24", "x/24", "::/129", "fe80::%eth0/64", "10.0.0.0/0xff"]
)
def test_what_is_no_range_names_the_field(text: str) -> None:
    with pytest.raises(InvalidRequest, match=r"^runtime_config\.network_config\.pod_cidr: '.*' is not a range such as"):
        parse_ranges(text)


async def test_a_configuration_is_made_and_in_force_at_once(open_cni: OpenCni, plugins: FakePlugins, pod: MakePod, template: Path) -> None:
    plugins.install("ptp")
    async with open_cni(conf_template=template) as cni:
        assert not cni.status().ready
        await cni.use_ranges(DUAL)
        assert cni.status().ready
        assert cni.plan(pod()).network == "made"
        assert made(plugins) == {
            "type": "host-local",
            "subnet": "10.0.0.0/24",
            "ranges": [[{"subnet": "10.0.0.0/24"}], [{"subnet": "2001:db8::/64"}]],
            "routes": [{"dst": "0.0.0.0/0"}, {"dst": "::/0"}],
        }
        before = (plugins.conf / FILE).stat().st_mtime_ns
        await cni.use_ranges(DUAL)
        assert (plugins.conf / FILE).stat().st_mtime_ns == before, "written only when it changes"
        await cni.use_ranges("2001:db8:1::/64")
        assert made(plugins)["routes"] == [{"dst": "::/0"}], "our own follows the ranges"
        assert made(plugins)["subnet"] == "2001:db8:1::/64"
        await cni.use_ranges("")
        assert made(plugins)["subnet"] == "2001:db8:1::/64"
    assert [entry.name for entry in plugins.conf.iterdir()] == [FILE]


async def test_nothing_is_made_beside_another_configuration(open_cni: OpenCni, plugins: FakePlugins, template: Path) -> None:
    other = {"cniVersion": "1.0.0", "name": "other", "plugins": [{"type": "not-installed"}]}
    (plugins.conf / "99-other.conflist").write_text(json.dumps(other))
    async with open_cni(conf_template=template) as cni:
        await cni.use_ranges(DUAL)
    assert [entry.name for entry in plugins.conf.iterdir()] == ["99-other.conflist"], "also while its plugins are missing"


async def test_without_a_template_ranges_are_checked_and_left(open_cni: OpenCni, plugins: FakePlugins) -> None:
    async with open_cni() as cni:
        await cni.use_ranges(DUAL)
        with pytest.raises(InvalidRequest):
            await cni.use_ranges("10.0.0.0")
    assert list(plugins.conf.iterdir()) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        (None, "does not exist or is empty"),
        ("{{.PodCIDR", "line 1: '{{' is never closed"),
        ('{"name": "{{.PodCIDR}}"', "is not JSON"),
        ('{"name": "n", "plugins": [{}]}', "type is required"),
    ],
)
async def test_a_template_that_makes_no_configuration_writes_none(
    open_cni: OpenCni, plugins: FakePlugins, template: Path, text: str | None, problem: str
) -> None:
    template.unlink() if text is None else template.write_text(text)
    async with open_cni(conf_template=template) as cni:
        with pytest.raises(ConfigError, match=str(template)) as caught:
            await cni.use_ranges(DUAL)
    assert problem in str(caught.value)
    assert list(plugins.conf.iterdir()) == []


async def test_a_directory_that_cannot_be_written_is_told(open_cni: OpenCni, tmp_path: Path, template: Path) -> None:
    (tmp_path / "file").write_text("")
    async with open_cni(conf_template=template, conf_dir=tmp_path / "file" / "net.d") as cni:
        with pytest.raises(HostError, match="10-cri-bridge"):
            await cni.use_ranges(DUAL)
