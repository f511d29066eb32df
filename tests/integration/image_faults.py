"""What registries do wrong, one case each: an image in a real registry, what the proxy before it does, and what a kubelet is told."""

from __future__ import annotations

import asyncio
import json
import os
from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
import zstandard
from aiohttp import web
from grpclib.const import Status

from bridge.images.manifest import OCI_INDEX
from bridge.testing.images import CONFIG_TYPE, LAYER_TYPE, MANIFEST_TYPE, Entry, compress, digest, tar

SIZE = 300_000
"""Bytes of the one file of an image; they are random, so that its blob has as many."""
LAYER_LIMIT = 50 << 20
_FOREIGN = "application/vnd.docker.image.rootfs.foreign.diff.tar.gzip"

Answer = Callable[[web.Request, bytes], Awaitable[web.StreamResponse | None]]
"""What the proxy does with a request and the real registry's body; None passes that on."""


@dataclass(frozen=True)
class Image:
    """A layer, and what a manifest says of it; ``config`` None is an honest one."""

    layer: bytes
    media_type: str = f"{LAYER_TYPE}+gzip"
    diff_id: str = ""
    layers: int = 1
    config: bytes | None = None


@dataclass(frozen=True)
class Case:
    """``code`` None: the pull succeeds. ``words`` is a regular expression for the message."""

    code: Status | None
    words: str
    manifests: Answer | None = None
    blobs: Answer | None = None
    image: Image | None = None
    requests: Mapping[str, Any] = field(default_factory=dict)


def some_layer() -> tuple[bytes, str]:
    """A gzipped layer unlike any other, and its diff id."""
    whole = tar([Entry("file", os.urandom(SIZE))])
    return compress(whole, "gzip"), digest(whole)


def honest() -> Image:
    """An image that any server takes."""
    layer, diff_id = some_layer()
    return Image(layer, diff_id=diff_id)


async def put(host: str, repository: str, image: Image) -> None:
    """Push ``image`` as tag v1 (distribution-spec, "Pushing"): no tool would push what these hold."""
    document = {
        "architecture": "amd64",
        "os": "linux",
        "config": {},
        "rootfs": {"type": "layers", "diff_ids": [image.diff_id] * image.layers},
    }
    config = image.config or json.dumps(document).encode()
    async with aiohttp.ClientSession(f"http://{host}") as session:
        for blob in (config, image.layer):
            async with session.post(f"/v2/{repository}/blobs/uploads/") as answer:
                target = answer.headers["Location"]
            async with session.put(f"{target}&digest={digest(blob)}", data=blob) as answer:
                assert answer.status == 201, await answer.text()
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": {"mediaType": CONFIG_TYPE, "digest": digest(config), "size": len(config)},
            "layers": [{"mediaType": image.media_type, "digest": digest(image.layer), "size": len(image.layer)}],
        }
        data, headers = json.dumps(manifest), {"Content-Type": MANIFEST_TYPE}
        async with session.put(f"/v2/{repository}/manifests/v1", data=data, headers=headers) as answer:
            assert answer.status == 201, await answer.text()


def is_layer(body: bytes) -> bool:
    """Configs are small, and no fault here is about them alone."""
    return len(body) > 10_000


def status(number: int, words: str = "", **headers: str) -> Answer:
    """An answer with a status and an error document."""

    async def answer(request: web.Request, body: bytes) -> web.Response:
        document = {"errors": [{"code": words, "message": "said the test"}]}
        return web.json_response(document, status=number, headers=headers)

    return answer


def says(text: str | bytes, media_type: str = MANIFEST_TYPE) -> Answer:
    """200 and this text."""
    data = text.encode() if isinstance(text, str) else text

    async def answer(request: web.Request, body: bytes) -> web.Response:
        return web.Response(body=data, content_type=media_type)

    return answer


def tampered(change: Callable[[bytes], bytes]) -> Answer:
    """The layer, changed."""

    async def answer(request: web.Request, body: bytes) -> web.Response | None:
        return web.Response(body=change(body)) if is_layer(body) else None

    return answer


async def shorter(request: web.Request, body: bytes) -> web.Response | None:
    """The layer without its end, which is never sent."""
    if "Range" in request.headers:
        return web.Response(status=206)
    return web.Response(body=body[:-1000]) if is_layer(body) else None


def cut(part: float, *, resumes: bool = False) -> Answer:
    """The connection breaks after this part of the layer, for ever at the same byte, or with ``resumes`` so much later each time."""

    async def answer(request: web.Request, body: bytes) -> web.StreamResponse | None:
        resumed = "Range" in request.headers
        if not is_layer(body) and not resumed:
            return None
        end = 0 if resumed and not resumes else min(len(body), int(SIZE * part))
        response = web.StreamResponse(status=206 if resumed else 200)
        response.content_length = len(body)
        await response.prepare(request)
        await response.write(body[:end])
        if end < len(body):
            assert request.transport is not None
            request.transport.close()
        return response

    return answer


async def trickle(request: web.Request, body: bytes) -> web.StreamResponse | None:
    """A byte now and then: never idle, never done."""
    if not is_layer(body):
        return None
    response = web.StreamResponse()
    response.content_length = len(body)
    await response.prepare(request)
    for number in range(2000):
        await response.write(body[number : number + 1])
        await asyncio.sleep(0.02)
    return response


async def silent(request: web.Request, body: bytes) -> web.StreamResponse | None:
    """Headers, and then nothing."""
    response = web.StreamResponse()
    response.content_length = len(body)
    await response.prepare(request)
    await asyncio.sleep(60)
    return response


async def circle(request: web.Request, body: bytes) -> web.Response:
    """A redirect to where we are."""
    return web.Response(status=307, headers={"Location": f"{request.path}?again"})


def expiring(uses: int) -> Answer:
    """Bearer tokens that are good for ``uses`` requests each."""
    left: dict[str, int] = {}

    async def answer(request: web.Request, body: bytes) -> web.Response | None:
        token = request.headers.get("Authorization", "").removeprefix("Bearer ")
        if left.get(token, 0) > 0:
            left[token] -= 1
            return None
        left[fresh := os.urandom(4).hex()] = uses
        realm = f'Bearer realm="http://{request.host}/token?is={fresh}",service="test"'
        return web.json_response({}, status=401, headers={"WWW-Authenticate": realm})

    return answer


def index_of(data: bytes, media_type: str) -> bytes:
    """An index with one entry."""
    entry = {"mediaType": media_type, "digest": digest(data), "size": len(data)}
    return json.dumps({"schemaVersion": 2, "mediaType": OCI_INDEX, "manifests": [entry]}).encode()


def nested(depth: int) -> Answer:
    """Indexes of indexes, each with its true digest."""
    chain = [index_of(b"{}", MANIFEST_TYPE)]
    for _ in range(depth):
        chain.append(index_of(chain[-1], OCI_INDEX))
    by_digest = {digest(each): each for each in chain}

    async def answer(request: web.Request, body: bytes) -> web.Response:
        return web.Response(body=by_digest.get(Path(request.path).name, chain[-1]), content_type=OCI_INDEX)

    return answer


def many_layers(count: int) -> str:
    """A manifest of so many layers."""
    layer = {"mediaType": f"{LAYER_TYPE}+gzip", "digest": digest(b""), "size": 32}
    config = {"mediaType": CONFIG_TYPE, "digest": digest(b"{}"), "size": 2}
    return json.dumps({"schemaVersion": 2, "mediaType": MANIFEST_TYPE, "config": config, "layers": [layer] * count})


async def foreign(request: web.Request, body: bytes) -> web.Response:
    """The manifest, but that its layer lies elsewhere."""
    manifest = json.loads(body)
    manifest["layers"][0] |= {"mediaType": _FOREIGN, "urls": ["https://elsewhere.example/layer"], "digest": digest(b"not here")}
    return web.json_response(manifest, content_type=MANIFEST_TYPE)


def _bomb(compression: str) -> Image:
    whole = tar([Entry("zeros", bytes(120 << 20))])
    data = zstandard.compress(whole) if compression == "zstd" else compress(whole, compression)
    return Image(data, media_type=f"{LAYER_TYPE}+{compression}", diff_id=digest(whole))


def _cut_gzip() -> Image:
    layer, diff_id = some_layer()
    return Image(layer[: len(layer) // 2], diff_id=diff_id)


_AWAY = "^RegistryUnavailable: "
_REFUSED = Status.INTERNAL
_UNAVAILABLE = Status.UNKNOWN


def cases() -> Mapping[str, Case]:
    """All of them by name, which is the image's repository too."""
    made = {f"cut-{tenth}0": Case(_UNAVAILABLE, _AWAY, blobs=cut(tenth / 10)) for tenth in range(1, 10)}
    for number, word in ((401, "UNAUTHORIZED"), (403, "DENIED"), (404, "UNKNOWN")):
        made[f"manifest-{number}"] = Case(
            Status.NOT_FOUND if number == 404 else _REFUSED, f"{number}.*{word}: said the test", manifests=status(number, word)
        )
        made[f"blob-{number}"] = Case(_REFUSED, f"{number}.*{word}: said the test", blobs=status(number, word))
    for number, word in ((429, "TOOMANYREQUESTS"), (500, "UNKNOWN"), (503, "UNAVAILABLE")):
        made[f"manifest-{number}"] = Case(_UNAVAILABLE, f"{_AWAY}.*{number}.*{word}: said the test", manifests=status(number, word))
        made[f"blob-{number}"] = Case(_UNAVAILABLE, f"{_AWAY}.*{number}", blobs=status(number, word))
    lie = Image(some_layer()[0], diff_id="sha256:" + "0" * 64)
    return made | {
        "cut-and-resumed": Case(None, "", blobs=cut(0.1, resumes=True)),
        "wrong-digest": Case(_REFUSED, "is damaged|refused", blobs=tampered(lambda body: body[:-9] + bytes([body[-9] ^ 1]) + body[-8:])),
        "wrong-in-the-middle": Case(
            _REFUSED, "is damaged|refused", blobs=tampered(lambda body: body[:99999] + bytes([body[99999] ^ 1]) + body[100_000:])
        ),
        "longer": Case(_REFUSED, "sent more than the", blobs=tampered(lambda body: body + b"more")),
        "shorter": Case(_UNAVAILABLE, f"{_AWAY}.*bytes early", blobs=shorter),
        "cut-gzip": Case(_REFUSED, "the gzip stream is cut short", image=_cut_gzip()),
        "slow-loris": Case(_UNAVAILABLE, f"{_AWAY}.*nothing arrived in time|trickle", blobs=trickle),
        "silent-manifest": Case(_UNAVAILABLE, f"{_AWAY}.*nothing arrived in time", manifests=silent),
        "silent-blob": Case(_UNAVAILABLE, f"{_AWAY}.*nothing arrived in time", blobs=silent),
        "circle-of-manifests": Case(_REFUSED, "redirects for ever", manifests=circle),
        "circle-of-blobs": Case(_REFUSED, "redirects for ever", blobs=circle),
        "expiring-tokens": Case(None, "", manifests=expiring(1), blobs=expiring(1)),
        "garbage": Case(_REFUSED, "manifest is not JSON", manifests=says("{garbage")),
        "web-page": Case(_REFUSED, "manifest is not JSON", manifests=says("<html>Sign in, please</html>", "text/html")),
        "deep-json": Case(_REFUSED, "manifest is not JSON", manifests=says("[" * 100_000)),
        "huge-manifest": Case(_REFUSED, "more than 4194304 bytes", manifests=says(b"{" * (5 << 20))),
        "schema-1": Case(_REFUSED, "schema 1", manifests=says('{"schemaVersion": 1, "fsLayers": []}')),
        "foreign-layer": Case(_REFUSED, "lies elsewhere .https://elsewhere.example/layer.*404", manifests=foreign),
        "index-loop": Case(_REFUSED, "sent a manifest with the digest", manifests=says(index_of(b"anything", OCI_INDEX), OCI_INDEX)),
        "index-depth": Case(_REFUSED, "indexes nest deeper than 4", manifests=nested(8)),
        "10000-layers": Case(_REFUSED, "has 10000 layers; at most 127", manifests=says(many_layers(10_000))),
        "gzip-bomb": Case(_REFUSED, f"more than {LAYER_LIMIT} bytes", image=_bomb("gzip")),
        "zstd-bomb": Case(_REFUSED, f"more than ({LAYER_LIMIT} bytes|1000 times)", image=_bomb("zstd")),
        "wrong-diff-id": Case(_REFUSED, "unpacks to sha256:.*the image's config says", image=lie),
        "fewer-layers": Case(
            _REFUSED, "the manifest has 1 layers, the config names 2", image=Image(*some_layer()[:1], diff_id=digest(b""), layers=2)
        ),
        "no-config": Case(_REFUSED, "image config is not JSON", image=Image(some_layer()[0], config=b"not a config")),
        "not-a-tar": Case(_REFUSED, "archive is refused", image=Image(compress(b"no tar" * 999, "gzip"), diff_id=digest(b"no tar" * 999))),
    }
