"""``cri-bridge image import|list|pull|rm``."""

from __future__ import annotations

import argparse

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.connection import ask
from bridge.cli.output import as_json, size, table
from bridge.client import CriClient

_LONG = 3600.0
"""Seconds that an import or a pull may take: the server has its own, tighter deadlines."""


def load(arguments: argparse.Namespace) -> int:
    """Import an archive or a layout. The server reads it, so the path must be its own."""
    request = admin.ImportImageRequest(path=str(arguments.path.absolute()), reference=arguments.name)
    answer: admin.ImportImageResponse = ask(arguments, lambda client: client.admin.import_image(request), timeout=_LONG)
    if arguments.output == "json":
        as_json([{"id": image.id, "tags": image.tags} for image in answer.images])
    else:
        table(("IMAGE", "ID"), [(", ".join(image.tags) or "<none>", image.id) for image in answer.images])
    return 0


def show(arguments: argparse.Namespace) -> int:
    """List the images."""
    answer: pb.ListImagesResponse = ask(arguments, lambda client: client.image.list_images())
    if arguments.output == "json":
        as_json([_plain(image) for image in answer.images])
    else:
        rows = [(", ".join(image.repo_tags) or "<none>", _short(image.id), size(image.size), _notes(image)) for image in answer.images]
        table(("IMAGE", "ID", "SIZE", ""), sorted(rows))
    return 0


def pull(arguments: argparse.Namespace) -> int:
    """Pull an image and print its id."""
    request = pb.PullImageRequest(image=pb.ImageSpec(image=arguments.reference))
    answer: pb.PullImageResponse = ask(arguments, lambda client: client.image.pull_image(request), timeout=_LONG)
    if arguments.output == "json":
        as_json({"id": answer.image_ref})
    else:
        print(answer.image_ref)
    return 0


def remove(arguments: argparse.Namespace) -> int:
    """Remove images; one that is not there is no error, as in CRI."""

    async def remove_all(client: CriClient) -> None:
        for reference in arguments.reference:
            await client.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))

    ask(arguments, remove_all)
    if arguments.output == "json":
        as_json({"removed": arguments.reference})
    return 0


def _short(digest: str) -> str:
    return digest.removeprefix("sha256:")[:13]


def _notes(image: pb.Image) -> str:
    return "pinned" if image.pinned else ""


def _plain(image: pb.Image) -> dict[str, object]:
    return {"id": image.id, "tags": image.repo_tags, "digests": image.repo_digests, "size": image.size, "pinned": image.pinned}
