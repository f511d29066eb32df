"""Which file is the network, what is missing, and that changes are seen."""

from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import anyio
import pytest

from bridge.host import inotify
from bridge.network import source
from bridge.network.cni import Cni
from bridge.network.source import scan
from bridge.ports.network import NetworkStatus
from tests.unit.network.fakeplugins import FakePlugins, MakePod, OpenCni


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(source, "_SETTLE", 0.01)
    monkeypatch.setattr(source, "_POLL", 0.02)


async def wait_status(cni: Cni, ready: bool, words: str = "") -> NetworkStatus:
    with anyio.fail_after(10):
        while cni.status().ready is not ready or words not in cni.status().message:
            await anyio.sleep(0.01)  # users poll the status too
    return cni.status()


def test_the_first_valid_file_by_name(plugins: FakePlugins) -> None:
    plugins.install("a")
    plugins.configure("30-last.conflist", name="last")
    plugins.configure("20-pods.conflist", name="pods")
    (plugins.conf / "10-bad.conflist").write_text("{")
    (plugins.conf / "15-empty.conf").write_text("")
    (plugins.conf / "05-other.txt").write_text("{")
    (plugins.conf / "06-directory.conf").mkdir()
    os.mkfifo(plugins.conf / "07-fifo.conf")
    (plugins.conf / "08-dangling.json").symlink_to("nowhere")
    found = scan(plugins.conf, [plugins.bin])
    assert found.network is not None
    assert (found.network.name, found.network.source, found.fault) == ("pods", "20-pods.conflist", "")
    assert [problem.split(":")[0] for problem in found.skipped] == ["07-fifo.conf", "08-dangling.json", "10-bad.conflist", "15-empty.conf"]


def test_a_missing_plugin_is_named_and_no_other_network_taken(plugins: FakePlugins) -> None:
    plugins.install("there")
    plugins.configure("10-first.conflist", name="first", plugins=[{"type": "there"}, {"type": "gone"}, {"type": "lost"}, {"type": "gone"}])
    plugins.configure("20-second.conflist", name="second")
    (plugins.bin / "lost").write_text("not executable")
    found = scan(plugins.conf, [plugins.bin, plugins.bin / "absent"])
    assert found.fault == (
        f"network 'first' of 10-first.conflist needs CNI plugins that are not in {plugins.bin}, {plugins.bin / 'absent'}: gone, lost"
    )


def test_the_first_plugin_directory_wins(plugins: FakePlugins, tmp_path: Path) -> None:
    plugins.install("a")
    second = tmp_path / "second"
    second.mkdir()
    for name in ("a", "b"):
        (second / name).write_text("")
        (second / name).chmod(0o755)
    binaries = scan(plugins.conf, [plugins.bin, second]).binaries
    assert {name: binary.path for name, binary in binaries.items()} == {"a": plugins.bin / "a", "b": second / "b"}


def test_plugins_from_the_directory_beside_the_file(plugins: FakePlugins) -> None:
    for name in ("a", "b", "c"):
        plugins.install(name)
    beside = plugins.conf / "pods"
    beside.mkdir()
    (beside / "20-c.conf").write_text('{"type": "c"}')
    (beside / "10-b.conf").write_text('{"type": "b"}')
    (beside / "readme").write_text("x")
    for inlined_only, kinds in ((False, ["a", "b", "c"]), (True, ["a"])):
        plugins.configure(plugins=[{"type": "a"}], loadOnlyInlinedPlugins=inlined_only)
        network = scan(plugins.conf, [plugins.bin]).network
        assert network is not None
        assert [plugin.type for plugin in network.plugins] == kinds
    (plugins.conf / "10-pods.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods"}))
    network = scan(plugins.conf, [plugins.bin]).network
    assert network is not None
    assert [plugin.type for plugin in network.plugins] == ["b", "c"]
    (beside / "10-b.conf").write_text("{}")
    assert scan(plugins.conf, [plugins.bin]).skipped == ("pods/10-b.conf: type is required: the name of the plugin's binary",)


def test_a_network_without_any_plugin(plugins: FakePlugins) -> None:
    (plugins.conf / "10-pods.conflist").write_text(json.dumps({"cniVersion": "1.0.0", "name": "pods"}))
    assert "plugins is missing" in scan(plugins.conf, [plugins.bin]).fault


async def test_status_tells_of_skipped_files(plugins: FakePlugins, open_cni: OpenCni, caplog: pytest.LogCaptureFixture) -> None:
    plugins.install("a")
    (plugins.conf / "10-bad.conflist").write_text("{}")
    async with open_cni() as cni:
        status = cni.status()
        assert (status.ready, status.reason) == (False, "NetworkPluginNotReady")
        assert f"no CNI configuration in {plugins.conf}" in status.message
        assert "10-bad.conflist: name must be" in status.message
        plugins.configure("20-pods.conflist")
        status = await wait_status(cni, True)
        assert status.message.startswith("skipped 10-bad.conflist: name must be")
    assert caplog.text.count("10-bad.conflist") == 2  # once skipped, once in the reason for not being ready


async def test_changes_are_seen(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    async with open_cni() as cni:
        assert not cni.status().ready
        plugins.configure(plugins=[{"type": "late"}])
        await wait_status(cni, False, "late")
        plugins.install("late")
        await wait_status(cni, True)
        assert cni.plan(pod()).network == "pods"
        plugins.configure("00-better.conflist", name="better")
        with anyio.fail_after(10):
            while cni.plan(pod()).network != "better":
                await anyio.sleep(0.01)
        (plugins.conf / "00-better.conflist").write_text("broken")
        await wait_status(cni, True, "00-better.conflist")
        assert cni.plan(pod()).network == "pods"
        for file in plugins.conf.iterdir():
            file.unlink()
        await wait_status(cni, False, "no CNI configuration")


async def test_directories_may_come_later_and_go(plugins: FakePlugins, open_cni: OpenCni, tmp_path: Path) -> None:
    plugins.install("a")
    deep = tmp_path / "etc" / "cni" / "net.d"
    async with open_cni(conf_dir=deep) as cni:
        deep.parent.mkdir(parents=True)
        plugins.configure()
        plugins.conf.rename(deep)
        await wait_status(cni, True)
        deep.rename(tmp_path / "away")
        await wait_status(cni, False)
        (tmp_path / "away").rename(deep)
        await wait_status(cni, True)
        plugin = {"type": "beside"}
        (deep / "pods").mkdir()
        (deep / "pods" / "x.conf").write_text(json.dumps(plugin))
        await wait_status(cni, False, "beside")


async def test_without_inotify_it_polls(
    plugins: FakePlugins, open_cni: OpenCni, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def used_up(self: object) -> None:
        raise OSError(errno.EMFILE, "too many instances")

    monkeypatch.setattr(inotify.DirectoryWatch, "__init__", used_up)
    plugins.install("a")
    async with open_cni() as cni:
        plugins.configure()
        await wait_status(cni, True)
    assert "no inotify" in caplog.text


async def test_without_watches_it_polls(plugins: FakePlugins, open_cni: OpenCni, monkeypatch: pytest.MonkeyPatch) -> None:
    def used_up(self: object, directories: object) -> None:
        raise OSError(errno.ENOSPC, "too many watches")

    monkeypatch.setattr(inotify.DirectoryWatch, "watch", used_up)
    plugins.install("a")
    async with open_cni() as cni:
        plugins.configure()
        await wait_status(cni, True)


async def test_the_newest_version_that_all_plugins_speak(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", versions=["0.4.0", "1.0.0"])
    plugins.install("b", versions=["0.4.0", "1.0.0", "1.1.0"])
    plugins.configure(cniVersion="1.1.0", cniVersions=["0.4.0", "1.0.0"])
    async with open_cni() as cni:
        assert cni.plan(pod()).data["conf"]["cniVersion"] == "1.0.0"
        plugins.install("a", versions=["0.4.0"])
        with anyio.fail_after(10):
            while cni.plan(pod()).data["conf"]["cniVersion"] != "0.4.0":
                await anyio.sleep(0.01)


async def test_no_common_version_is_told(plugins: FakePlugins, open_cni: OpenCni) -> None:
    plugins.install("a", versions=["0.4.0", "1.0.0"])
    plugins.configure(cniVersion="1.1.0")
    async with open_cni() as cni:
        status = cni.status()
    assert status.message == "network 'pods' of 10-pods.conflist is of CNI 1.1.0, which its plugins don't all speak: a speaks 0.4.0, 1.0.0"


async def test_a_plugin_without_version_is_trusted(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", versions=None)
    plugins.configure(cniVersion="0.4.0")
    async with open_cni() as cni:
        assert cni.plan(pod()).data["conf"]["cniVersion"] == "0.4.0"
