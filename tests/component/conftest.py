"""A whole core over fakes of its ports, with real namespaces, files and database."""

from __future__ import annotations

import asyncio
import dataclasses
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.aio import Supervisor
from bridge.core import spec
from bridge.core.model import (
    ContainerConfig,
    ContainerMetadata,
    ContainerSecurity,
    ImageSpec,
    NamespaceMode,
    NamespaceOptions,
    PodConfig,
    PodMetadata,
    SandboxSecurity,
)
from bridge.core.services import Ports, Services, assemble
from bridge.core.settings import CoreSettings
from bridge.core.store import MIGRATIONS, Store
from bridge.host import facts, mounts, namespaces
from bridge.host.database import Database
from bridge.testing.fake_checkpoints import FakeCheckpoints
from bridge.testing.fake_handlers import FakeHandlers
from bridge.testing.fake_stores import FakeImages, FakeNetwork
from bridge.testing.fakes import FakeBackend

PRIVATE_PID = NamespaceOptions(pid=NamespaceMode.CONTAINER)


def pod(name: str = "web", **changes: object) -> PodConfig:
    base = PodConfig(
        PodMetadata(name, f"uid-{name}", "default"),
        hostname=name,
        log_directory="",
        security=SandboxSecurity(namespaces=PRIVATE_PID),
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


def container(name: str = "app", **changes: object) -> ContainerConfig:
    base = ContainerConfig(
        ContainerMetadata(name), ImageSpec("busybox"), command=("sleep", "1000"), security=ContainerSecurity(namespaces=PRIVATE_PID)
    )
    return dataclasses.replace(base, **changes)  # type: ignore[arg-type]


@dataclasses.dataclass
class World:
    """Core and its fakes; ``started`` may be called again over the same files to play a restart."""

    root: Path
    backend: FakeBackend
    network: FakeNetwork
    images: FakeImages
    boot_id: str = "boot-1"
    host: dict[str, Any] = dataclasses.field(default_factory=dict)
    spec_settings: spec.SpecSettings = dataclasses.field(default_factory=spec.SpecSettings)
    settings: dict[str, Any] = dataclasses.field(default_factory=dict)

    @property
    def run_dir(self) -> Path:
        return self.root / "run"

    @asynccontextmanager
    async def started(self) -> AsyncIterator[Services]:
        settings = CoreSettings(
            run_dir=self.run_dir, pause_rootfs=self.root, pause_argv=("/pause",), boot_id=self.boot_id, kill_timeout=2.0, exec_drain=0.2
        )
        settings = dataclasses.replace(settings, **self.settings)
        host = dataclasses.replace(facts.gather(), **self.host)
        database = await Database.open(self.root / "state.db", MIGRATIONS)
        try:
            async with Supervisor() as supervisor:
                store = Store(database)
                await store.load()
                ports = Ports(FakeHandlers(self.backend), self.network, self.images)
                yield assemble(store, ports, settings, host, self.spec_settings, supervisor)
        finally:
            await database.close()

    def leftovers(self) -> list[str]:
        """Everything that exists outside the database."""
        mounts = [line.split()[4] for line in Path("/proc/self/mountinfo").read_text().splitlines()]
        found = [f"mount {path}" for path in mounts if path.startswith(str(self.root))]
        sandboxes = self.run_dir / "sandboxes"
        found += [f"directory {path}" for path in (sandboxes.iterdir() if sandboxes.exists() else ())]
        found += [f"address of {ident}" for ident in self.network.attached]
        found += [f"backend sandbox {ident}" for ident in self.backend.sandboxes]
        found += [f"backend container {ident}" for ident in self.backend.containers]
        found += [f"root filesystem of {ident}" for ident in self.images.mounted]
        found += [f"image volume of {ident}" for ident in self.images.volumes]
        found += [f"checkpoint {name}" for name in self.images.checkpoints.left()]
        return found


@pytest.fixture
async def world(tmp_path: Path) -> AsyncIterator[World]:
    made = World(tmp_path, FakeBackend(), FakeNetwork(), FakeImages())
    made.images.checkpoints = FakeCheckpoints(tmp_path / "checkpoints")
    yield made
    for pins in made.run_dir.glob("sandboxes/*/ns"):
        await namespaces.remove(pins)
    await mounts.unmount_tree(tmp_path)


@pytest.fixture
async def core(world: World) -> AsyncIterator[Services]:
    # One task enters and leaves core, as anyio's scopes demand; a fixture's two halves may run in different ones.
    ready: asyncio.Future[Services] = asyncio.get_running_loop().create_future()
    over = asyncio.Event()

    async def run() -> None:
        async with world.started() as services:
            ready.set_result(services)
            await over.wait()

    task = asyncio.create_task(run())

    def ended(done: asyncio.Task[None]) -> None:
        if not ready.done():
            ready.set_exception(done.exception() or RuntimeError("core ended early"))

    task.add_done_callback(ended)
    yield await ready
    over.set()
    await task
