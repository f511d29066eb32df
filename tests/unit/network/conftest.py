"""Fixtures of the network tests: fake plugins, and a Cni that uses them."""

from __future__ import annotations

from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from bridge.aio import Supervisor
from bridge.network.cni import Cni, CniSettings
from bridge.ports.network import PodNetworkRequest
from tests.unit.network.fakeplugins import FakePlugins, MakePod, OpenCni


@pytest.fixture
def plugins(tmp_path: Path) -> FakePlugins:
    return FakePlugins(tmp_path)


@pytest.fixture
def open_cni(plugins: FakePlugins) -> OpenCni:
    @asynccontextmanager
    async def opened(**changes: Any) -> AsyncIterator[Cni]:
        settings = CniSettings(**{"conf_dir": plugins.conf, "bin_dirs": (plugins.bin,), **changes})
        async with Supervisor() as supervisor, Cni.open(settings, supervisor) as cni:
            yield cni

    return opened


@pytest.fixture
def pod(tmp_path: Path) -> MakePod:
    def make(**changes: Any) -> PodNetworkRequest:
        facts: dict[str, Any] = {"sandbox_id": "sb1", "name": "web", "namespace": "shop", "uid": "u1", "netns": tmp_path / "netns"}
        return PodNetworkRequest(**{**facts, **changes})

    return make
