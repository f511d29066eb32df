"""``cri-bridge demo``: a pod from end to end on every handler, under a private root, then the proof that nothing is left."""

from __future__ import annotations

import argparse
import os
import shutil
from collections.abc import Collection, Sequence
from contextlib import AsyncExitStack
from pathlib import Path

import anyio

from bridge import __version__
from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.connection import server
from bridge.cli.demo_host import DemoHost, parent_cgroup, parent_slice, private_host, running_server
from bridge.cli.demo_pod import show_pod
from bridge.cli.narration import Narration
from bridge.client import CriClient
from bridge.config import Config, Handler
from bridge.config_files import load
from bridge.errors import ConfigError, Denied, HostError
from bridge.plugins import Plugins
from bridge.testing.hierarchies import hugetlb_for_crun
from bridge.testing.images import write_busybox_layout
from bridge.testing.leaks import Scope, settle, snapshot
from bridge.testing.private_server import monitor_pid

IMAGE = "localhost/busybox:demo"
_BUSYBOX = (Path("/bin/busybox"), Path("/usr/bin/busybox"))


def run(arguments: argparse.Namespace) -> int:
    """Run the demo; exit code 1 when a handler failed, none is enabled, or something was left behind."""
    given = chosen(load(arguments.config), arguments.handler or [])
    if os.geteuid() != 0:
        raise Denied("the demo needs root: pods are made of namespaces, mounts and cgroups")
    return anyio.run(_demo, arguments, given)


def chosen(given: Config, only: Sequence[str]) -> Config:
    """``given`` with the handlers ``only`` alone enabled, if some are named; the name of an installed plugin is one with its defaults.

    Raises ConfigError for a name that is neither.
    """
    if not only:
        return given
    handlers = {name: handler.model_copy(update={"enabled": name in only}) for name, handler in given.runtime.handlers.items()}
    plugins = Plugins()
    plugins.load_entry_points()
    for name in only:
        if name not in handlers:
            handlers[name] = _by_plugin(name, plugins, given.runtime.handlers)
    return given.model_copy(update={"runtime": given.runtime.model_copy(update={"handlers": handlers, "default_handler": only[0]})})


def _by_plugin(name: str, plugins: Plugins, configured: Collection[str]) -> Handler:
    if name in plugins.runtimes:
        return Handler(plugin=name)
    if name in plugins.faults:
        raise ConfigError(f"no handler {name!r} is configured, and plugin {name!r} can't be used: {plugins.faults[name]}")
    there = f"configured: {', '.join(sorted(configured))}; installed plugins: {', '.join(plugins.runtimes)}"
    raise ConfigError(f"no such handler {name!r} ({there})")


async def _demo(arguments: argparse.Namespace, given: Config) -> int:
    tell = Narration()
    tell.heading(f"cri-bridge {__version__}: a pod from end to end, on every handler of this host")
    with hugetlb_for_crun() as mounted:
        if mounted:
            tell.fact("mounted /sys/fs/cgroup/hugetlb for crun, as this host lacks it; it is unmounted at the end")
        async with private_host() as host:
            outside = Scope(roots=[host.root], bridges=[host.bridge], cgroup_marks=[host.name])
            before = snapshot(outside)
            try:
                good = await _with_server(tell, host, given)
            finally:
                if arguments.keep_logs:
                    _keep_logs(host, arguments.keep_logs)
            left = _ignore_state(await anyio.to_thread.run_sync(lambda: settle(outside, before, timeout=0.5)), host)
        left += await anyio.to_thread.run_sync(lambda: settle(outside, before))
    tell.heading("After the end of server and monitor")
    _report(tell, left, "no process, mount, cgroup, network device or file is left")
    return 0 if good and not left else 1


async def _with_server(tell: Narration, host: DemoHost, given: Config) -> bool:
    host.prepare(given)
    config = load([host.config_file])
    async with AsyncExitStack() as stack:
        pid = await stack.enter_async_context(running_server(host, config))
        client = await stack.enter_async_context(server(config.server.socket, timeout=60))
        monitor = await monitor_pid(config.monitor.socket)
        version = await client.runtime.version()
        tell.heading("Server and monitor")
        tell.fact(f"{version.runtime_name} {version.runtime_version} (CRI {version.runtime_api_version}), private root {host.root}")
        tell.fact(f"server is process {pid}, monitor is process {monitor}")
        await _import_image(tell, client, host)
        linux = (await client.runtime.runtime_config()).linux
        systemd = linux is not None and linux.cgroup_driver == pb.CgroupDriver.SYSTEMD
        await stack.enter_async_context(parent_slice(host.name) if systemd else parent_cgroup(f"/{host.name}"))
        return await _every_handler(tell, client, host, host.scope([one for one in (pid, monitor) if one]))


async def _every_handler(tell: Narration, client: CriClient, host: DemoHost, scope: Scope) -> bool:
    handlers = (await client.admin.handlers()).handlers
    enabled = [one.name for one in handlers if one.enabled]
    tell.heading("Handlers")
    for one in handlers:
        tell.verdict(one.enabled, f"{one.name}: {one.version.splitlines()[0] if one.enabled and one.version else one.reason or 'enabled'}")
    before = snapshot(scope)
    for name in enabled:
        await show_pod(tell, client, host, name, IMAGE)
    tell.heading("Leak audit, with the server still running")
    left = await anyio.to_thread.run_sync(lambda: settle(scope, before))
    kinds = "mounts, namespaces, address leases, cgroups, processes, descriptors"
    _report(tell, list(left), f"after {len(enabled)} pods everything is as before: {kinds}")
    if not enabled:
        tell.verdict(False, "no handler is enabled, so no pod was run; cri-bridge doctor says what is missing")
    return bool(enabled) and not left


async def _import_image(tell: Narration, client: CriClient, host: DemoHost) -> None:
    busybox = next((path for path in _BUSYBOX if path.exists()), None)
    if busybox is None:
        raise HostError("there is no busybox here to make an image of: apt-get install busybox-static")
    layout = host.root / "layout"
    await anyio.to_thread.run_sync(lambda: write_busybox_layout(layout, IMAGE, busybox))
    answer = await client.admin.import_image(admin.ImportImageRequest(path=str(layout)))
    tell.fact(f"imported {answer.images[0].tags[0]}, made of {busybox}: {answer.images[0].id[:19]}…")


def _ignore_state(left: Sequence[str], host: DemoHost) -> list[str]:
    """What is left, but the files of the private root: database, images and logs are there on purpose until it is removed."""
    return [line for line in left if not line.startswith((f"file: {host.root}/", f"network device: {host.bridge}"))]


def _report(tell: Narration, left: Sequence[str], well: str) -> None:
    if not left:
        tell.verdict(True, well)
    for line in left:
        tell.verdict(False, f"left behind: {line}")


def _keep_logs(host: DemoHost, directory: Path) -> None:
    directory.mkdir(parents=True, exist_ok=True)
    for path in (host.server_log, host.run_dir / "monitor.log"):
        if path.exists():
            shutil.copy(path, directory / path.name)
