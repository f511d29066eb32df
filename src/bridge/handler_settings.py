"""What is known of one handler before its plugin opens it: the configuration's words, and what pods made on it remember of them."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from bridge.core import base_spec
from bridge.errors import ConfigError
from bridge.host import files
from bridge.ports.handlers import HandlerPolicy, Opening
from bridge.ports.host import RuntimeTimeouts

_BASE_SPEC_BYTES = 4 << 20


@dataclass(frozen=True, slots=True)
class HandlerSettings:
    """One handler of the configuration. ``options`` are the plugin's own; ``timeouts`` None means the host's.

    ``allowed_annotations`` and the file ``base_spec`` make its HandlerPolicy.
    """

    name: str
    plugin: str
    options: Mapping[str, Any] = field(default_factory=dict)
    timeouts: RuntimeTimeouts | None = None
    allowed_annotations: tuple[str, ...] = ()
    base_spec: Path | None = None

    def opening(self) -> Opening:
        """Everything but the name, as JSON: equal for two settings exactly when one opened backend serves both."""
        kept: dict[str, Any] = {"plugin": self.plugin}
        if self.options:
            kept["options"] = json.loads(json.dumps(dict(self.options), default=str))
        if self.timeouts is not None:
            kept["timeouts"] = asdict(self.timeouts)
        return kept

    def same_backend(self, opening: Opening) -> bool:
        """Whether a pod that was made with ``opening`` is this one's."""
        return self.opening() == opening


@dataclass(frozen=True, slots=True)
class Reloaded:
    """What a reload changed, by name."""

    added: Sequence[str] = ()
    changed: Sequence[str] = ()
    removed: Sequence[str] = ()

    def __str__(self) -> str:
        kinds = (("added", self.added), ("changed", self.changed), ("removed", self.removed))
        parts = [f"{what} {', '.join(names)}" for what, names in kinds if names]
        return "; ".join(parts) or "no handler changed"


def of_opening(name: str, opening: Opening) -> HandlerSettings:
    """The settings that ``opening`` came from, without the operator's choices for new containers. Raises ConfigError for a damaged one."""
    try:
        given = opening.get("timeouts")
        known = {key: float(value) for key, value in (given or {}).items() if key in RuntimeTimeouts.__slots__}
        timeouts = RuntimeTimeouts(**known) if given is not None else None
        return HandlerSettings(name, str(opening["plugin"]), dict(opening.get("options") or {}), timeouts)
    except (KeyError, TypeError, ValueError, AttributeError) as exc:
        raise ConfigError(f"what a pod's record keeps of handler {name!r} is damaged: {exc}") from exc


async def policy(settings: HandlerSettings) -> HandlerPolicy:
    """The operator's choices, with the base spec as the file holds it now. Raises ConfigError."""
    if settings.base_spec is None:
        return HandlerPolicy(settings.allowed_annotations)
    text = await files.read_text(settings.base_spec, limit=_BASE_SPEC_BYTES)
    if not text:
        raise ConfigError(f"base_spec: {settings.base_spec} does not exist or is empty")
    try:
        return HandlerPolicy(settings.allowed_annotations, base_spec.parse(text))
    except ConfigError as exc:
        raise ConfigError(f"base_spec: {settings.base_spec}: {exc.message}") from exc
