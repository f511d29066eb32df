"""The port to the registry of runtime handlers: which there are, their backends, and what the operator chose for each."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from bridge.ports.runtime import RuntimeBackend, RuntimeFeatures

Opening = Mapping[str, Any]
"""How a handler was opened, as JSON: a pod's record keeps it, so that its handler can be opened again once the configuration has
another one of that name, or none. Core stores it and never reads it."""


@dataclass(frozen=True, slots=True)
class HandlerState:
    """A handler for Status and error texts: enabled with features, or disabled with the reason.

    ``next_try`` is when a disabled one is tried again, on the event loop's clock; None when that is not known.
    """

    name: str
    plugin: str
    features: RuntimeFeatures | None
    disabled_reason: str = ""
    next_try: float | None = None


@dataclass(frozen=True, slots=True)
class HandlerPolicy:
    """The operator's choices for the containers of one handler.

    ``allowed_annotations`` are the patterns of annotations that pods may pass on to it (see core/spec_annotations);
    ``base_spec`` is a valid OCI spec that theirs is laid over (see core/base_spec).
    """

    allowed_annotations: tuple[str, ...] = ()
    base_spec: Mapping[str, Any] | None = None


class Handlers(Protocol):
    """The live registry of handlers that core sees.

    A new pod gets the handler that the configuration has now. One that was made before keeps its own: whoever asks for a pod names
    the ``opening`` of its record too (None in records of version 0.1: then the configured one of that name is taken for it).
    """

    @property
    def default(self) -> str: ...
    def backend(self, name: str, opening: Opening | None = None) -> RuntimeBackend:
        """The backend of handler ``name`` ("" means the default), or the one that was opened as ``opening`` says.

        NotFound lists the handlers that exist and why others are disabled.
        """
        ...

    def opening(self, name: str) -> Opening:
        """How ``backend(name)`` was opened. Raises NotFound."""
        ...

    async def reopen(self, name: str, opening: Opening | None) -> RuntimeBackend:
        """``backend``, opened again if nothing serves such pods any more. Raises Unavailable with the reason when that fails."""
        ...

    def policy(self, name: str, opening: Opening | None = None) -> HandlerPolicy:
        """The policy of handler ``name``; without choices for one that nothing serves."""
        ...

    def states(self) -> Sequence[HandlerState]:
        """Every configured handler."""
        ...
