"""ADD, CHECK, DEL, GC and STATUS against fake plugins."""

from __future__ import annotations

import dataclasses
import json
import os
import time
from pathlib import Path
from typing import Any

import anyio
import pytest

from bridge.errors import CorruptData, InvalidRequest, NetworkFailed, Unavailable, Unsupported
from bridge.network.cni import Cni
from bridge.ports.network import Attachment, PortMapping
from tests.unit.network.fakeplugins import FakePlugins, MakePod, OpenCni, failure, result


def stored(attachment: Attachment) -> Attachment:
    """What core reads back from its database."""
    return Attachment(attachment.network, json.loads(json.dumps(dict(attachment.data))))


async def wait_ready(cni: Cni, ready: bool, words: str = "") -> None:
    with anyio.fail_after(10):
        while cni.status().ready is not ready or words not in cni.status().message:
            await anyio.sleep(0.01)  # the status is polled by its users


async def test_a_pod_from_add_to_del(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a-main", ADD=result("10.0.0.5/24", "fd00::5/64", dns={"from": "main"}), DEL=":")
    plugins.install("b-chain", ADD=result("10.0.0.5/24", "fd00::5/64", dns={"from": "chain"}), DEL=":")
    chained = {"type": "b-chain", "capabilities": {"portMappings": True, "mac": True}}
    plugins.configure(plugins=[{"type": "a-main", "keep": {"x": [1]}}, chained])
    async with open_cni() as cni:
        assert cni.status().ready
        attachment = stored(cni.plan(pod(port_mappings=[PortMapping(80, 8080)])))
        assert attachment.network == "pods"
        assert plugins.order == []
        network = await cni.add(attachment)
        assert network.ips == ("10.0.0.5", "fd00::5")
        await cni.delete(stored(network.attachment))
    assert plugins.order == ["ADD a-main", "ADD b-chain", "DEL b-chain", "DEL a-main"]
    add_main, add_chain, del_chain, del_main = plugins.calls
    assert add_main.stdin == {"cniVersion": "1.0.0", "name": "pods", "type": "a-main", "keep": {"x": [1]}}
    assert add_chain.stdin["prevResult"]["dns"] == {"from": "main"}
    ports = [{"hostPort": 8080, "containerPort": 80, "protocol": "tcp", "hostIP": ""}]
    assert add_chain.stdin["runtimeConfig"] == {"portMappings": ports} == del_chain.stdin["runtimeConfig"]
    assert "capabilities" not in add_chain.stdin
    assert del_chain.stdin["prevResult"]["dns"] == del_main.stdin["prevResult"]["dns"] == {"from": "chain"}
    assert (add_main.env["CNI_CONTAINERID"], add_main.env["CNI_IFNAME"], add_main.env["CNI_PATH"]) == ("sb1", "eth0", str(plugins.bin))
    assert add_main.env["CNI_NETNS"] == str(pod().netns)
    assert "K8S_POD_NAMESPACE=shop;K8S_POD_NAME=web;K8S_POD_INFRA_CONTAINER_ID=sb1" in add_main.env["CNI_ARGS"]
    assert del_main.env["CNI_NETNS"] == ""  # nothing is pinned there in this test


async def test_the_environment_is_the_servers_without_its_private_parts(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("main", ADD=result("10.0.0.5/24"))
    plugins.configure()
    environment = {"HTTPS_PROXY": "p", "CNI_IFNAME": "x", "CNI_SECRET": "x", "NOTIFY_SOCKET": "x", "WATCHDOG_PID": "1", "LISTEN_FDS": "1"}
    async with open_cni(environment=environment) as cni:
        await cni.add(cni.plan(pod()))
    env = plugins.calls[0].env
    assert env["HTTPS_PROXY"] == "p"
    assert env["CNI_IFNAME"] == "eth0"
    assert "/sbin" in env["PATH"]
    assert not {"CNI_SECRET", "NOTIFY_SOCKET", "WATCHDOG_PID", "LISTEN_FDS"} & set(env)


async def test_a_failing_plugin_stops_the_chain_and_del_reaches_all(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", ADD=result("10.0.0.5/24"), DEL=":")
    plugins.install("b", ADD="echo trouble >&2; " + failure(7, "no range", "in pods"), DEL=":")
    plugins.install("c", ADD=result("10.0.0.5/24"), DEL=":")
    plugins.configure()
    async with open_cni() as cni:
        attachment = cni.plan(pod())
        with pytest.raises(NetworkFailed) as caught:
            await cni.add(attachment)
        assert caught.value.message == "network 'pods': CNI plugin 'b': ADD failed: no range; in pods (code 7) [stderr: trouble]"
        await cni.delete(attachment)
    assert plugins.order == ["ADD a", "ADD b", "DEL c", "DEL b", "DEL a"]
    assert all("prevResult" not in call.stdin for call in plugins.calls[2:])


async def test_del_of_what_was_never_added(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", DEL=":")
    plugins.configure()
    async with open_cni() as cni:
        await cni.delete(cni.plan(pod()))
    assert plugins.order == ["DEL a"]


async def test_del_stops_at_a_failure_and_can_be_repeated(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", DEL=":")
    plugins.install("b", DEL=failure(11, "busy"))
    plugins.configure()
    async with open_cni() as cni:
        attachment = cni.plan(pod())
        with pytest.raises(NetworkFailed, match=r"'b': DEL failed: busy \(code 11\)"):
            await cni.delete(attachment)
        plugins.install("b", DEL=":")
        await cni.delete(attachment)
    assert plugins.order == ["DEL b", "DEL b", "DEL a"]


async def test_del_needs_no_configuration_file(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", ADD=result("10.0.0.5/24"), DEL=":")
    plugins.configure(plugins=[{"type": "a", "mark": 1}])
    async with open_cni() as cni:
        network = await cni.add(cni.plan(pod()))
    (plugins.conf / "10-pods.conflist").unlink()
    async with open_cni() as cni:
        assert not cni.status().ready
        await cni.delete(stored(network.attachment))
    assert plugins.calls[-1].stdin["mark"] == 1


async def test_del_says_which_plugin_is_gone(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a")
    plugins.configure()
    async with open_cni() as cni:
        attachment = cni.plan(pod())
    (plugins.bin / "a").unlink()
    async with open_cni() as cni:
        with pytest.raises(NetworkFailed, match=f"'a' is not in {plugins.bin}"):
            await cni.delete(attachment)


@pytest.mark.parametrize(("version", "given"), [("0.3.1", False), ("0.4.0", True)])
async def test_del_gets_the_result_since_0_4_0(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod, version: str, given: bool) -> None:
    plugins.install("a", ADD=result("10.0.0.5/24", cniVersion=version), DEL=":")
    plugins.configure(cniVersion=version)
    async with open_cni() as cni:
        await cni.delete((await cni.add(cni.plan(pod()))).attachment)
    assert ("prevResult" in plugins.calls[1].stdin) is given
    assert plugins.calls[1].stdin["cniVersion"] == version


async def test_a_hanging_plugin_meets_its_deadline_with_all_its_children(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    marker = plugins.conf.parent / "pids"
    plugins.install("a", ADD=f"sleep 300 & echo $! >> {marker}; echo $$ >> {marker}; wait")
    plugins.configure()
    async with open_cni(plugin_timeout=0.5) as cni:
        before = time.monotonic()
        with pytest.raises(NetworkFailed, match=r"'a': ADD did not end within 0\.5 s"):
            await cni.add(cni.plan(pod()))
        assert time.monotonic() - before < 30
    for pid in marker.read_text().split():
        with anyio.fail_after(5):
            while Path(f"/proc/{pid}").exists() and "\nState:\tZ" not in Path(f"/proc/{pid}/status").read_text():
                await anyio.sleep(0.01)  # an orphan is reaped by init, which tells nobody


@pytest.mark.parametrize(
    ("snippet", "words"),
    [
        ("echo not json", "ADD ended well, but its output is not JSON"),
        (":", "ADD ended well, but it wrote nothing"),
        ("echo '{}'", "gave the pod's eth0 no IP address"),
        (result(), "gave the pod's eth0 no IP address"),
        (result("10.0.0.500/24"), "an address that is none: '10.0.0.500/24'"),
        ("head -c 3000000 /dev/zero", "wrote more than a result can have"),
        ("echo broken >&2; exit 3", "failed: exit code 3: broken"),
        ("kill -9 $$", "failed: killed by signal 9"),
    ],
)
async def test_answers_that_are_none(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod, snippet: str, words: str) -> None:
    plugins.install("a", ADD=snippet)
    plugins.configure()
    async with open_cni() as cni:
        with pytest.raises(NetworkFailed, match=words):
            await cni.add(cni.plan(pod()))


async def test_check(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", ADD=result("10.0.0.5/24"), CHECK=":")
    plugins.install("b", ADD=result("10.0.0.5/24"), CHECK=failure(100, "no veth"))
    plugins.configure()
    async with open_cni() as cni:
        attachment = cni.plan(pod())
        with pytest.raises(NetworkFailed, match="never attached"):
            await cni.check(attachment)
        attachment = (await cni.add(attachment)).attachment
        plugins.clear()
        with pytest.raises(NetworkFailed, match="'b': CHECK failed: no veth"):
            await cni.check(attachment)
    assert plugins.order == ["CHECK a", "CHECK b"]
    assert plugins.calls[0].stdin["prevResult"]["ips"][0]["address"] == "10.0.0.5/24"


@pytest.mark.parametrize("changes", [{"disableCheck": True}, {"cniVersion": "0.3.1"}])
async def test_no_check_where_the_network_has_none(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod, changes: dict[str, Any]) -> None:
    plugins.install("a", ADD=result("10.0.0.5/24"), CHECK="exit 1")
    plugins.configure(**changes)
    async with open_cni() as cni:
        await cni.check((await cni.add(cni.plan(pod()))).attachment)
    assert plugins.order == ["ADD a"]


async def test_status_verb_is_asked_in_the_background(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a", STATUS=failure(50, "no route to the API server"))
    plugins.configure(cniVersion="1.1.0")
    async with open_cni(status_interval=0.05) as cni:
        await wait_ready(cni, False, "'a': STATUS failed: no route to the API server (code 50)")
        assert cni.status().reason == "NetworkPluginNotReady"
        assert cni.plan(pod()).network == "pods"  # STATUS is a hint some seconds old: ADD may try
        plugins.install("a", STATUS=":")
        await wait_ready(cni, True)
    assert plugins.calls[0].stdin == {"cniVersion": "1.1.0", "name": "pods", "type": "a"}
    assert "CNI_CONTAINERID" not in plugins.calls[0].env


async def test_older_networks_are_not_asked_for_status_nor_collected(plugins: FakePlugins, open_cni: OpenCni) -> None:
    plugins.install("a", STATUS="exit 1", GC="exit 1")
    plugins.configure(cniVersion="1.0.0")
    async with open_cni(status_interval=0.01) as cni:
        await anyio.sleep(0.05)
        await cni.collect([])
        assert cni.status().ready
    assert plugins.order == []


async def test_gc_keeps_what_is_alive(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    for name in ("a", "b"):
        plugins.install(name, versions=["1.1.0"], ADD=result("10.0.0.5/24"), DEL=":", GC=":", STATUS=":")
    plugins.configure(cniVersion="1.1.0")
    async with open_cni(status_interval=60) as cni:
        elsewhere = dataclasses.replace(cni.plan(pod(sandbox_id="older")))
        other = json.loads(json.dumps(dict(cni.plan(pod(sandbox_id="other")).data)))
        other["conf"]["name"] = "another"
        await cni.add(cni.plan(pod(sandbox_id="fresh")))
        gone = await cni.add(cni.plan(pod(sandbox_id="gone")))
        await cni.delete(gone.attachment)
        plugins.clear()
        await cni.collect([elsewhere, Attachment("another", other)])
    calls = [call for call in plugins.calls if call.verb == "GC"]
    assert [call.plugin for call in calls] == ["a", "b"]
    valid = [{"containerID": "fresh", "ifname": "eth0"}, {"containerID": "older", "ifname": "eth0"}]
    assert calls[0].stdin["cni.dev/valid-attachments"] == valid
    assert calls[0].env["CNI_PATH"] == str(plugins.bin)
    assert "CNI_NETNS" not in calls[0].env


async def test_gc_asks_every_plugin_and_reports_all_failures(plugins: FakePlugins, open_cni: OpenCni) -> None:
    plugins.install("a", GC=failure(1, "first"))
    plugins.install("b", GC=failure(2, "second"))
    plugins.configure(cniVersion="1.1.0")
    async with open_cni() as cni:
        with pytest.raises(NetworkFailed, match=r"first.*second"):
            await cni.collect([])


async def test_gc_can_be_disabled(plugins: FakePlugins, open_cni: OpenCni) -> None:
    plugins.install("a", GC="exit 1", STATUS=":")
    plugins.configure(cniVersion="1.1.0", disableGC=True)
    async with open_cni(status_interval=60) as cni:
        await cni.collect([])
    assert "GC a" not in plugins.order


async def test_gc_and_add_exclude_each_other(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    begun, go_on = plugins.conf.parent / "begun", plugins.conf.parent / "go"
    os.mkfifo(begun)
    os.mkfifo(go_on)
    plugins.install("a", ADD=result("10.0.0.5/24"), GC=f"echo x > {begun}; read -r line < {go_on}", STATUS=":")
    plugins.configure(cniVersion="1.1.0")
    async with open_cni(status_interval=60) as cni, anyio.create_task_group() as group:
        group.start_soon(cni.collect, [])
        await anyio.to_thread.run_sync(begun.read_text)
        added = anyio.Event()

        async def add() -> None:
            await cni.add(cni.plan(pod()))
            added.set()

        group.start_soon(add)
        await anyio.sleep(0.1)
        assert not added.is_set()
        await anyio.to_thread.run_sync(go_on.write_text, "x\n")
        with anyio.fail_after(10):
            await added.wait()
    assert [order for order in plugins.order if "STATUS" not in order] == ["GC a", "ADD a"]


async def test_plan_refuses_what_can_not_work(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a")
    async with open_cni() as cni:
        with pytest.raises(Unavailable, match=f"not ready: no CNI configuration in {plugins.conf}"):
            cni.plan(pod())
    plugins.configure()
    async with open_cni() as cni:
        with pytest.raises(InvalidRequest, match="bandwidth"):
            cni.plan(pod(annotations={"kubernetes.io/ingress-bandwidth": "x"}))
        with pytest.raises(InvalidRequest, match=r"config\.metadata\.name"):
            cni.plan(pod(name="a;b=c"))


async def test_host_ports_that_no_plugin_takes_are_refused(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    plugins.install("a")
    plugins.configure()
    asked = pod(port_mappings=[PortMapping(80, 8080)])
    async with open_cni() as cni:
        with pytest.raises(Unsupported, match=r"config\.port_mappings: no plugin of network 'pods' \(.*\) has the capability portMappings"):
            cni.plan(asked)
        cni.plan(pod(port_mappings=[PortMapping(80, 0)]))
    async with open_cni(host_port_plugins=("a",)) as cni:
        cni.plan(asked)


@pytest.mark.parametrize("data", [{}, {"v": 2}, {"v": 1, "conf": {}}, {"v": 1, "conf": None}])
async def test_a_damaged_record_says_so(open_cni: OpenCni, data: dict[str, object]) -> None:
    async with open_cni() as cni:
        with pytest.raises(CorruptData, match="'pods'"):
            await cni.delete(Attachment("pods", data))


async def test_cancellation_kills_the_plugin_and_frees_the_turn(plugins: FakePlugins, open_cni: OpenCni, pod: MakePod) -> None:
    begun = plugins.conf.parent / "begun"
    os.mkfifo(begun)
    plugins.install("a", ADD=f"echo $$ > {begun}; exec sleep 300", DEL=":")
    plugins.configure()
    async with open_cni() as cni:
        attachment = cni.plan(pod())
        async with anyio.create_task_group() as group:
            group.start_soon(cni.add, attachment)
            pid = (await anyio.to_thread.run_sync(begun.read_text)).strip()
            group.cancel_scope.cancel()
        assert not Path(f"/proc/{pid}").exists()
        with anyio.fail_after(10):
            await cni.delete(attachment)
