"""``cri-bridge image pull|import|export``: what moves layers, with a bar for each."""

from __future__ import annotations

import argparse
import getpass
import sys
from collections.abc import AsyncGenerator
from contextlib import aclosing
from pathlib import Path

from anyio.to_thread import run_sync

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.bars import last_of
from bridge.cli.connection import ask, older
from bridge.cli.output import as_json, size, table
from bridge.client import CriClient, CriError
from bridge.errors import HostError, InvalidRequest

_STDOUT = "-"
_LONG = 86_400.0
"""Seconds that a transfer may take: the server has its own, tighter deadlines."""


def pull(arguments: argparse.Namespace) -> int:
    """Pull an image and print its id. Interrupted, the server goes on for as long as it is configured to."""
    request = admin.PullImageRequest(reference=arguments.reference)
    if arguments.creds is not None:
        user, colon, password = arguments.creds.partition(":")
        request.username, request.password = user, password if colon else getpass.getpass(f"password of {user}: ")
    elif arguments.auth_file is not None:
        _credentials(request, arguments.auth_file)
    image: admin.StoredImage = ask(arguments, lambda client: _pull(client, request, arguments), timeout=_LONG)
    if arguments.output == "json":
        as_json({"id": image.id, "tags": image.tags, "digests": image.digests, "size": image.size})
    else:
        print(image.id)
    return 0


async def _pull(client: CriClient, request: admin.PullImageRequest, arguments: argparse.Namespace) -> admin.StoredImage:
    try:
        last = await last_of(client.admin.pull_image(request, timeout=arguments.timeout), arguments.quiet)
        return last.image or admin.StoredImage()
    except CriError as exc:
        if not older(exc):
            raise
    _say("the server does not tell how far the pull is", arguments)
    auth = pb.AuthConfig(
        username=request.username,
        password=request.password,
        identity_token=request.identity_token,
        registry_token=request.registry_token,
    )
    spec = pb.ImageSpec(image=request.reference)
    answer = await client.image.pull_image(pb.PullImageRequest(image=spec, auth=auth if auth != pb.AuthConfig() else None))
    return admin.StoredImage(id=answer.image_ref)


def _credentials(request: admin.PullImageRequest, path: Path) -> None:
    """What the file has for the reference's registry. Raises InvalidRequest when it has nothing."""
    import anyio

    from bridge.images import auth_files
    from bridge.images.reference import parse

    reference = parse(request.reference)
    try:
        file = auth_files.parse(path.read_text(), str(path))
    except OSError as exc:
        raise HostError(f"can't read {path}: {exc.strerror}", errno=exc.errno) from exc
    found = auth_files.stored(file, reference.domain, reference.path)
    if not found and auth_files.helper_of(file, reference.domain):
        found = anyio.run(auth_files.AuthFiles((path,)).credentials, reference.domain, reference.path)
    if not found:
        raise InvalidRequest(f"{path} has no credentials for {reference.repository}", field="auth-file")
    request.username, request.password = found.username, found.password
    request.identity_token, request.registry_token = found.identity_token, found.registry_token


def load(arguments: argparse.Namespace) -> int:
    """Import an archive or a layout. The server reads it, so the path must be its own."""
    request = admin.ImportImageRequest(path=str(arguments.path.absolute()), reference=arguments.name)

    async def run(client: CriClient) -> list[admin.ImportedImage]:
        try:
            return (await last_of(client.admin.import_images(request, timeout=arguments.timeout), arguments.quiet)).images
        except CriError as exc:
            if not older(exc):
                raise
        return (await client.admin.import_image(request)).images

    images: list[admin.ImportedImage] = ask(arguments, run, timeout=_LONG)
    if arguments.output == "json":
        as_json([{"id": image.id, "tags": image.tags} for image in images])
    else:
        table(("IMAGE", "ID"), [(", ".join(image.tags) or "<none>", image.id) for image in images])
    return 0


def save(arguments: argparse.Namespace) -> int:
    """Export images. The server writes the file, complete or not at all; to stdout it sends what is complete there."""
    plain, sent = arguments.format == "docker", str(arguments.file) == _STDOUT
    if sent and sys.stdout.isatty():
        raise InvalidRequest("stdout is a terminal: give a file, or a pipe to read the archive", field="file")
    request = admin.ExportImagesRequest(
        references=arguments.reference,
        path=_STDOUT if sent else str(arguments.file.absolute()),
        format=arguments.format,
        compression=arguments.compression or ("none" if plain else "gzip"),
        replace=arguments.force,
    )

    async def run(client: CriClient) -> admin.ExportedFile:
        last = await last_of(_spilled(client.admin.export_images(request, timeout=arguments.timeout)), arguments.quiet)
        return last.file or admin.ExportedFile()

    file: admin.ExportedFile = ask(arguments, run, timeout=_LONG)
    images = [{"id": image.id, "names": image.tags} for image in file.images]
    if arguments.output == "json" and not sent:
        as_json({"path": request.path, "size": file.size, "images": images})
    else:
        _say(f"{len(images)} image{'s' if len(images) != 1 else ''}, {size(file.size)}", arguments)
        if not sent:
            print(request.path)
    return 0


async def _spilled(replies: AsyncGenerator[admin.ExportImagesResponse]) -> AsyncGenerator[admin.ExportImagesResponse]:
    """``replies`` without the archive, which goes to stdout. Raises HostError."""
    async with aclosing(replies):
        async for reply in replies:
            if not reply.data:
                yield reply
                continue
            try:
                await run_sync(sys.stdout.buffer.write, reply.data)
            except OSError as exc:
                raise HostError(f"can't write the archive to stdout: {exc.strerror}", errno=exc.errno) from exc
    sys.stdout.buffer.flush()


def _say(text: str, arguments: argparse.Namespace) -> None:
    if not arguments.quiet:
        print(text, file=sys.stderr)
