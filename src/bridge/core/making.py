"""The container that is being made, as each step of its creation sees it."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from bridge.aio import Rollback
from bridge.core.entities import Container, Sandbox
from bridge.core.model import ContainerConfig
from bridge.core.selinux import Labels, of_container
from bridge.core.settings import CoreSettings
from bridge.host.facts import HostFacts
from bridge.host.lookups import Lookups
from bridge.ports.images import Image, Images
from bridge.ports.runtime import RuntimeFeatures


@dataclass(frozen=True, slots=True)
class Making:
    """One CreateContainer under way. ``container`` is its journaled record, ``bundle`` its directory (0711, private to it).

    ``features`` are the handler's; ``lookups`` is how host paths of the request are looked at, never directly. A step that takes
    something pushes what gives it back to ``undo`` on the next line. What it puts below ``bundle``, mounts included, is also removed
    with the container.
    """

    container: Container
    sandbox: Sandbox
    image: Image
    bundle: Path
    settings: CoreSettings
    facts: HostFacts
    features: RuntimeFeatures
    images: Images
    lookups: Lookups
    undo: Rollback

    @property
    def config(self) -> ContainerConfig:
        """What was asked for."""
        return self.container.config

    @property
    def labels(self) -> Labels:
        """The SELinux labels of its processes and of its files."""
        return of_container(self.sandbox, self.config)
