"""A whole core over a real OCI runtime and a real monitor, in this process; network and images are stand-ins."""

from __future__ import annotations

import contextlib
import gc
import os
import secrets
import shutil
import stat
from collections.abc import AsyncIterator, Mapping
from pathlib import Path

import anyio
from anyio.to_thread import run_sync

from bridge.aio import Supervisor
from bridge.core import spec
from bridge.core.entities import Container
from bridge.core.model import PodConfig
from bridge.core.services import Ports, Services, assemble
from bridge.core.settings import CoreSettings
from bridge.core.store import MIGRATIONS, Store
from bridge.host import facts, mounts
from bridge.host.database import Database
from bridge.oci.backend import OciBackend
from bridge.oci.cli import OciSettings
from bridge.ports.images import Rootfs
from bridge.testing.fake_handlers import FakeHandlers
from bridge.testing.fake_stores import FakeImages, FakeNetwork
from tests.component.conftest import container, pod
from tests.integration import pod_cgroups
from tests.integration.oci_node import OciNode, make_rootfs, oci_node


class BusyboxImages(FakeImages):
    """Every container gets a busybox of its own, in its bundle and gone with that."""

    async def mount_rootfs(
        self, container_id: str, image_id: str, target: Path, *, label: str = "", user_namespace: Path | None = None
    ) -> Rootfs:
        await run_sync(make_rootfs, target)
        self.mounted.add(container_id)
        return Rootfs(target, target)

    async def remount_rootfs(self, container_id: str, target: Path) -> Rootfs:
        return Rootfs(target, target)


class CoreNode(OciNode):
    """``served`` is one life of the server; it may be had again. ``invocations`` are the runtime's, verb by verb."""

    def __init__(self, node: OciNode) -> None:
        self.__dict__ = node.__dict__
        self.calls = self.root / "calls"
        self.images, self.network = BusyboxImages(), FakeNetwork()
        self.core: Services
        real = shutil.which(self.runtime)
        self.wrapper = self.root / "runtime"
        self.wrapper.write_text(f'#!/bin/sh\necho "$*" >> {self.calls}\nexec {real} "$@"\n')
        self.wrapper.chmod(self.wrapper.stat().st_mode | stat.S_IXUSR)

    def settings(self) -> OciSettings:
        root = self.root / "state" / self.runtime
        return OciSettings(handler=self.runtime, path=self.wrapper, root=root, systemd_cgroup=False, timeouts=self.timeouts)

    @property
    def invocations(self) -> int:
        return len(self.calls.read_text().splitlines())

    @contextlib.asynccontextmanager
    async def served(self) -> AsyncIterator[Services]:
        async with self.backend() as backend:
            database = await Database.open(self.root / "state.db", MIGRATIONS)
            try:
                async with Supervisor() as supervisor:
                    store = Store(database)
                    await store.load()
                    self.core = self._assemble(store, backend, supervisor)
                    await self.core.recovery.run()
                    yield self.core
            finally:
                await database.close()

    def _assemble(self, store: Store, backend: OciBackend, supervisor: Supervisor) -> Services:
        settings = CoreSettings(run_dir=self.root, pause_rootfs=None, pause_argv=(), boot_id="boot", exec_drain=0.5)
        handlers = FakeHandlers(backend)  # type: ignore[arg-type]
        specs = spec.SpecSettings(cgroup_driver=pod_cgroups.DRIVER)
        return assemble(store, Ports(handlers, self.network, self.images), settings, facts.gather(), specs, supervisor)

    def pod_config(self, **changes: object) -> PodConfig:
        name = f"pod{secrets.token_hex(4)}"
        return pod(name, cgroup_parent=f"{self.cgroup}/{name}", **changes)

    async def started(self, *command: str, tty: bool = False, stdin: bool = False, stdin_once: bool = False) -> Container:
        """A running container in a pod of its own."""
        sandbox = await self.core.sandboxes.run(self.pod_config(), "")
        config = container(command=command or ("/bin/sleep", "1000"), tty=tty, stdin=stdin, stdin_once=stdin_once)
        made = await self.core.containers.create(sandbox.id, config)
        await self.core.containers.start(made.id)
        return self.core.store.containers[made.id]

    async def clean(self) -> None:
        """Remove every pod."""
        for ident in tuple(self.core.store.sandboxes):
            await self.core.sandboxes.stop(ident)
            await self.core.sandboxes.remove(ident)


def descriptors() -> dict[int, str]:
    """What each descriptor of this process is."""
    found = {}
    for number in os.listdir("/proc/self/fd"):
        with contextlib.suppress(FileNotFoundError):  # that of the directory itself
            found[int(number)] = os.readlink(f"/proc/self/fd/{number}")
    return found


async def left_open(before: Mapping[int, str], *, patience: float = 10.0) -> dict[int, str]:
    """The descriptors that are open now and were not ``before``, once there are none or ``patience`` seconds have passed.

    A server that ends takes its descriptors along. One that ended in this process leaves those of its handles to the collector.
    """
    deadline = anyio.current_time() + patience
    gc.collect()
    while (left := dict(descriptors().items() - before.items())) and anyio.current_time() < deadline:
        await anyio.sleep(0.02)
    return left


@contextlib.asynccontextmanager
async def core_node(root: Path, runtime: str) -> AsyncIterator[CoreNode]:
    """A node on which nothing is left afterwards, no descriptor of this process either."""
    async with oci_node(root, runtime) as node:
        made = CoreNode(node)
        gc.collect()  # or what earlier tests left may go meanwhile, and hide what this one leaves
        before = descriptors()
        try:
            yield made
        finally:
            await mounts.unmount_tree(root)
        assert made.leftovers() == []
        assert not list((root / "sandboxes").glob("*"))
        assert list((root / "tty").iterdir()) == []
        left = await left_open(before)
        assert not left, f"descriptors that were left open: {left}"
