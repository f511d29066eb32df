"""An in-memory stand-in for the registry of handlers (bridge.ports.handlers)."""

from __future__ import annotations

from collections.abc import Sequence

from bridge.errors import NotFound, Unavailable
from bridge.ports.handlers import HandlerPolicy, HandlerState, Opening
from bridge.testing.fakes import FakeBackend


class FakeHandlers:
    """A registry with one enabled handler, ``fake``, the default, and one disabled one, ``broken``."""

    default = "fake"

    def __init__(self, backend: FakeBackend) -> None:
        self._backend = backend
        self.choices = HandlerPolicy()

    def policy(self, name: str, opening: Opening | None = None) -> HandlerPolicy:
        """The same for all: ``choices``."""
        return self.choices

    def opening(self, name: str) -> Opening:
        """Always the same. Raises NotFound."""
        self.backend(name)
        return {"plugin": "fake"}

    async def reopen(self, name: str, opening: Opening | None) -> FakeBackend:
        """The one backend. Raises Unavailable."""
        try:
            return self.backend(name)
        except NotFound as exc:
            raise Unavailable(exc.message) from exc

    def backend(self, name: str, opening: Opening | None = None) -> FakeBackend:
        """The one backend. Raises NotFound."""
        if name in ("", "fake"):
            return self._backend
        raise NotFound(f"no handler {name!r}; there are: fake; disabled: broken (its binary is missing)")

    def states(self) -> Sequence[HandlerState]:
        """Both handlers."""
        return (
            HandlerState("fake", "fake", self._backend.features),
            HandlerState("broken", "fake", None, "its binary is missing"),
        )
