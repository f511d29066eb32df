"""``cri-bridge image ls|rm|inspect|check|prune``: what is in the store, and whether it is sound."""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.cli.bars import last_of
from bridge.cli.connection import ask, older
from bridge.cli.output import Cell, as_json, size, table
from bridge.client import CriClient, CriError

_LONG = 86_400.0
"""Seconds that reading a whole store may take."""


def show(arguments: argparse.Namespace) -> int:
    """List the images. A server that only knows CRI does not tell what uses them."""
    images: Sequence[admin.StoredImage] = ask(arguments, _list)
    if arguments.output == "json":
        as_json([_plain(image) for image in images])
    elif arguments.quiet:
        for image in images:
            print(image.id)
    else:
        headers = ["IMAGE", "ID", "SIZE", "IN USE BY", ""]
        table(
            [*headers[:2], "DIGEST", *headers[2:]] if arguments.digests else headers,
            [_row(image, arguments) for image in sorted(images, key=lambda image: (image.tags or [""])[0])],
        )
    return 0


async def _list(client: CriClient) -> Sequence[admin.StoredImage]:
    try:
        return (await client.admin.list_images()).images
    except CriError as exc:
        if not older(exc):
            raise
    listed = (await client.image.list_images()).images
    return [admin.StoredImage(id=i.id, tags=i.repo_tags, digests=i.repo_digests, size=i.size, pinned=i.pinned) for i in listed]


def _row(image: admin.StoredImage, arguments: argparse.Namespace) -> list[Cell]:
    kinds = [word for word, holds in (("artifact", image.artifact_type), ("pinned", image.pinned)) if holds]
    notes: Cell = ("damaged", "red") if image.damaged else ", ".join(kinds)
    count = len(image.used_by)
    used = "" if not count else f"{count} container{'s' if count > 1 else ''}"
    ident = image.id if arguments.no_trunc else short(image.id)
    digests: list[Cell] = ["\n".join(image.digests) if sys.stdout.isatty() else ",".join(image.digests)] if arguments.digests else []
    return [", ".join(image.tags) or "<none>", ident, *digests, size(image.size), used, notes]


def remove(arguments: argparse.Namespace) -> int:
    """Remove images; one that is not there is no error, as in CRI."""

    async def remove_all(client: CriClient) -> None:
        for reference in arguments.reference:
            await client.image.remove_image(pb.RemoveImageRequest(image=pb.ImageSpec(image=reference)))

    ask(arguments, remove_all)
    if arguments.output == "json":
        as_json({"removed": arguments.reference})
    return 0


def inspect(arguments: argparse.Namespace) -> int:
    """Show all of one image."""
    request = admin.InspectImageRequest(reference=arguments.reference)
    answer: admin.InspectImageResponse = ask(arguments, lambda client: client.admin.inspect_image(request))
    assert answer.image is not None
    config = _config(answer.config)
    if arguments.output == "json":
        whole = {**_plain(answer.image), "manifest_digest": answer.manifest_digest, "manifest": json.loads(answer.manifest)}
        as_json({**whole, "config": config, "layers": [_layer_plain(layer) for layer in answer.layers]})
        return 0
    facts = [("id", answer.image.id), ("manifest", answer.manifest_digest), *_facts(answer.image, config)]
    width = max(len(name) for name, _ in facts) + 2
    for name, value in facts:
        print(f"{name + ':':{width}}{value}")
    print()
    rows = [_layer_row(number, layer) for number, layer in enumerate(answer.layers)]
    table(("LAYER", "DIFF ID", "CHAIN ID", "BLOB", "ON DISK", "FILES", "IMAGES", "DIRECTORY"), rows)
    return 0


def _config(data: bytes) -> dict[str, object]:
    """Of an image; an artifact's may be anything, and only an object is shown."""
    try:
        found = json.loads(data)
    except ValueError:
        return {}
    return found if isinstance(found, dict) else {}


def _facts(image: admin.StoredImage, config: dict[str, object]) -> list[tuple[str, str]]:
    run = config.get("config")
    inner: dict[str, object] = run if isinstance(run, dict) else {}
    lines = [("tag", tag) for tag in image.tags] + [("digest", digest) for digest in image.digests]
    lines += [("artifact", image.artifact_type)] if image.artifact_type else []
    lines += [
        ("size", f"{size(image.size)} on disk"),
        ("platform", "/".join(str(config[k]) for k in ("os", "architecture", "variant") if config.get(k)) or "any"),
    ]
    lines += [(key.lower(), _word(inner[key])) for key in ("User", "Entrypoint", "Cmd", "WorkingDir", "StopSignal") if inner.get(key)]
    environment = inner.get("Env")
    lines += [("env", str(each)) for each in environment] if isinstance(environment, list) else []
    lines += [("used by", container) for container in image.used_by]
    notes = [word for word, holds in (("pinned", image.pinned), ("damaged", image.damaged)) if holds]
    return [*lines, *[("note", note) for note in notes]]


def _word(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _layer_row(number: int, layer: admin.StoredLayer) -> list[Cell]:
    shown = [short(layer.diff_id), short(layer.chain_id), size(layer.blob_size), size(layer.disk_size)]
    return [str(number), *shown, str(layer.inodes), str(layer.images), layer.directory]


def _layer_plain(layer: admin.StoredLayer) -> dict[str, object]:
    return {
        "diff_id": layer.diff_id,
        "chain_id": layer.chain_id,
        "digest": layer.digest,
        "media_type": layer.media_type,
        "blob_size": layer.blob_size,
        "tar_size": layer.tar_size,
        "disk_size": layer.disk_size,
        "inodes": layer.inodes,
        "images": layer.images,
        "directory": layer.directory,
        "exact": layer.exact,
    }


def check(arguments: argparse.Namespace) -> int:
    """Say what is damaged; the exit code is 1 while something is."""
    request = admin.CheckImagesRequest(full=arguments.full, repair=arguments.repair)
    answer: admin.CheckImagesResponse = ask(arguments, lambda client: _check(client, request, arguments), timeout=_LONG)
    failed = [one for one in answer.repairs if one.error]
    damaged = bool(answer.damaged or answer.index_faults or answer.damaged_documents)
    mended = arguments.repair and not failed and not answer.index_faults
    if arguments.output == "json":
        as_json(_report(answer))
    else:
        for line in report_lines(answer, repair=arguments.repair):
            print(line)
    return 1 if failed or (damaged and not mended) else 0


async def _check(client: CriClient, request: admin.CheckImagesRequest, arguments: argparse.Namespace) -> admin.CheckImagesResponse:
    try:
        last = await last_of(client.admin.verify_images(request, timeout=arguments.timeout), arguments.quiet)
        return last.report or admin.CheckImagesResponse()
    except CriError as exc:
        if not older(exc):
            raise
    return await client.admin.check_images(request)


def report_lines(answer: admin.CheckImagesResponse, *, repair: bool) -> list[str]:
    """What a check found, for a person."""
    lines = [f"the index: {fault}" for fault in answer.index_faults]
    lines += [f"document {digest} is damaged" for digest in answer.damaged_documents]
    for layer in answer.damaged:
        lines.append(
            f"layer {layer.chain_id} in directory {layer.directory} is damaged; on it stand {', '.join(layer.images) or 'no images'}"
        )
        lines += [f"  {problem}" for problem in layer.problems]
        lines += [f"  container {container} uses it" for container in layer.containers]
    for one in answer.repairs:
        name = ", ".join(one.names) or one.id
        lines.append(f"{name} could not be mended: {one.error}" if one.error else f"{name} is whole again")
    if answer.recounted:
        lines.append(f"{answer.recounted} layers were counted anew")
    seen = f"{answer.layers} layer{'s' if answer.layers != 1 else ''} in {answer.seconds:.1f} s"
    depth = "every byte read" if answer.full else "attributes compared"
    if not (answer.damaged or answer.index_faults or answer.damaged_documents):
        return [*lines, f"nothing is damaged: {seen}, {depth}"]
    hint = "" if repair else "; cri-bridge image check --repair fetches it again"
    return [*lines, f"damaged: {len(answer.damaged)} of {seen}, {depth}{hint}"]


def _report(answer: admin.CheckImagesResponse) -> dict[str, object]:
    return {
        "full": answer.full,
        "layers": answer.layers,
        "damaged": [
            {"chain_id": d.chain_id, "directory": d.directory, "problems": d.problems, "images": d.images, "containers": d.containers}
            for d in answer.damaged
        ],
        "index": answer.index_faults,
        "documents": answer.damaged_documents,
        "recounted": answer.recounted,
        "seconds": answer.seconds,
        "repairs": [{"id": one.id, "names": one.names, "error": one.error} for one in answer.repairs],
    }


def prune(arguments: argparse.Namespace) -> int:
    """Remove what nothing uses."""
    request = admin.PruneImagesRequest(all=arguments.all, dry_run=arguments.dry_run)
    answer: admin.PruneImagesResponse = ask(arguments, lambda client: client.admin.prune_images(request), timeout=_LONG)
    if arguments.output == "json":
        as_json({"images": [_plain(image) for image in answer.images], "layers": answer.layers, "freed_bytes": answer.freed_bytes})
        return 0
    for image in answer.images:
        print(f"{'would remove' if arguments.dry_run else 'removed'} {', '.join(image.tags) or short(image.id)}")
    if not arguments.dry_run:
        print(f"{answer.layers} layers removed, {size(answer.freed_bytes)} freed")
    return 0


def short(digest: str) -> str:
    """The beginning of a digest, long enough to be told apart by eye and to be typed."""
    return digest.removeprefix("sha256:")[:13]


def _plain(image: admin.StoredImage) -> dict[str, object]:
    return {
        "id": image.id,
        "tags": image.tags,
        "digests": image.digests,
        "size": image.size,
        "pinned": image.pinned,
        "used_by": image.used_by,
        "damaged": image.damaged,
        "artifact_type": image.artifact_type,
    }
