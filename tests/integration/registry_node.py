"""A real registry (Debian's docker-registry) on 127.0.0.1, and a proxy in front of it that counts and breaks things."""

from __future__ import annotations

from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import aiohttp
import anyio
from aiohttp import web

from bridge.testing.registry import REGISTRY, free_port, registry

__all__ = ["REGISTRY", "Proxy", "free_port", "proxy", "push", "registry"]


async def push(layout: Path, name: str, host: str, repository: str, *flags: str) -> None:
    """Copy image ``name`` of an OCI layout to ``host/repository`` (with tag) over http."""
    copy = ["skopeo", "copy", "-q", "--all", "--preserve-digests", "--dest-tls-verify=false", *flags]
    await anyio.run_process([*copy, f"oci:{layout}:{name}", f"docker://{host}/{repository}"])


class Proxy:
    """Forwards to a registry, with the ``conditions`` of requests.

    ``requests`` counts paths, ``statuses`` are what the registry answered; ``fault`` may answer a request itself, ``tamper`` may
    change a body.
    """

    def __init__(self, upstream: str) -> None:
        self.upstream = upstream
        self.host = ""
        self.requests: Counter[str] = Counter()
        self.headers: list[dict[str, str]] = []
        self.statuses: list[int] = []
        self.conditions = ["If-None-Match"]
        self.fault: Callable[[web.Request], Awaitable[web.StreamResponse | None]] | None = None
        self.tamper: Callable[[str, bytes], bytes] = lambda path, body: body

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.requests[request.path] += 1
        self.headers.append(dict(request.headers))
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        headers = {k: v for k, v in request.headers.items() if k in ("Accept", "Range", *self.conditions)}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{self.upstream}{request.path_qs}", headers=headers) as answered:
                self.statuses.append(answered.status)
                body = self.tamper(request.path, await answered.read())
                kept = {k: v for k, v in answered.headers.items() if k in ("Content-Type", "Content-Range")}
                return web.Response(status=answered.status, body=body, headers=kept)

    async def body(self, request: web.Request) -> bytes:
        """What the registry itself answers to ``request``."""
        headers = {k: v for k, v in request.headers.items() if k in ("Accept", "Range")}
        async with aiohttp.ClientSession() as session:
            async with session.get(f"http://{self.upstream}{request.path_qs}", headers=headers) as answered:
                return await answered.read()

    def blobs(self) -> int:
        """How many blob requests came."""
        return sum(count for path, count in self.requests.items() if "/blobs/" in path)


@asynccontextmanager
async def proxy(upstream: str) -> AsyncIterator[Proxy]:
    """A running proxy; its ``host`` is where it listens."""
    made = Proxy(upstream)
    application = web.Application()
    application.router.add_route("*", "/{tail:.*}", made.handle)
    runner = web.AppRunner(application, handler_cancellation=True, shutdown_timeout=0.1)
    await runner.setup()
    site = web.TCPSite(runner, "127.0.0.1", 0)
    await site.start()
    made.host = f"127.0.0.1:{runner.addresses[0][1]}"
    try:
        yield made
    finally:
        await runner.cleanup()
