"""The parser of ``cri-bridge image``: its verbs, their options and their help."""

from __future__ import annotations

import argparse
from pathlib import Path

from bridge.cli.verbs import Verbs, socket, verb

_SEEING = "bridge.cli.image"
_MOVING = "bridge.cli.image_transfers"
_REFERENCE = "name, id, or the beginning of one"


def add(verbs: Verbs) -> None:
    """Add the verb ``image`` with all that belongs to it."""
    text = "list, pull, remove, import, export, check, prune or inspect images"
    image = verbs.add_parser("image", help=text, description=text[0].upper() + text[1:] + ".")
    actions = image.add_subparsers(title="actions", metavar="ACTION", required=True)
    _list(actions)
    _pull(actions)
    _remove(actions)
    _import(actions)
    _export(actions)
    _keep(actions)
    inspect = verb(actions, "inspect", f"{_SEEING}:inspect", "show an image: its config, its manifest, its layers on disk")
    inspect.add_argument("reference", help=_REFERENCE)
    socket(inspect)


def _list(actions: Verbs) -> None:
    listing = actions.add_parser("ls", aliases=["list"], help="list the images", description="List the images and what uses them.")
    listing.set_defaults(run=f"{_SEEING}:show")
    listing.add_argument("-q", "--quiet", action="store_true", help="only the ids")
    listing.add_argument("--digests", action="store_true", help="also the digests by which registries know them")
    listing.add_argument("--no-trunc", action="store_true", help="whole ids")
    socket(listing)


def _pull(actions: Verbs) -> None:
    pull = verb(actions, "pull", f"{_MOVING}:pull", "pull an image, with a bar for each layer, and print its id")
    pull.add_argument("reference", help="such as docker.io/library/busybox:latest")
    who = pull.add_mutually_exclusive_group()
    who.add_argument(
        "--creds",
        metavar="USER[:PASSWORD]",
        help="for this pull; the password is asked for when it is left out (default: the server's own credentials)",
    )
    who.add_argument("--auth-file", type=Path, metavar="PATH", help="a Docker config.json or containers auth.json with the credentials")
    _quiet(pull)
    socket(pull)


def _remove(actions: Verbs) -> None:
    remove = verb(actions, "rm", f"{_SEEING}:remove", "remove images: by name that name, by id all of them")
    remove.add_argument("reference", nargs="+", help=_REFERENCE)
    socket(remove)


def _import(actions: Verbs) -> None:
    load = verb(actions, "import", f"{_MOVING}:load", "import all images of an OCI layout, an OCI archive or a docker archive")
    load.add_argument("path", type=Path, help="directory or archive (also compressed), as the server sees it")
    load.add_argument("--name", default="", help="name for the image, when the archive holds exactly one")
    _quiet(load)
    socket(load)


def _export(actions: Verbs) -> None:
    export = verb(actions, "export", f"{_MOVING}:save", "write images to an archive that ctr, docker, podman and skopeo read")
    export.add_argument("reference", nargs="+", help=_REFERENCE + "; one that is named keeps that name, one by id all its tags")
    export.add_argument(
        "-f", "--file", type=Path, required=True, metavar="PATH", help="file or directory to make, as the server sees it; - for stdout"
    )
    export.add_argument(
        "--format",
        choices=("oci", "oci-dir", "docker"),
        default="oci",
        help="oci: an OCI archive that docker load reads too (default); oci-dir: a directory; docker: what old docker load reads",
    )
    export.add_argument("--compression", choices=("gzip", "zstd", "none"), help="of the layers (default: gzip; the docker format has none)")
    export.add_argument("--force", action="store_true", help="replace a file that is there")
    _quiet(export)
    socket(export)


def _keep(actions: Verbs) -> None:
    check = verb(actions, "check", f"{_SEEING}:check", "compare the store with its index; the exit code is 1 when something stays damaged")
    check.add_argument("--full", action="store_true", help="read every byte, not only the attributes of all files")
    check.add_argument("--repair", action="store_true", help="fetch again what is damaged, one layer at a time")
    _quiet(check)
    socket(check)
    prune = verb(actions, "prune", f"{_SEEING}:prune", "remove images that lost their names, and layers that nothing uses")
    prune.add_argument("--all", action="store_true", help="also images with names, if no container uses them; pinned ones are kept")
    prune.add_argument("--dry-run", action="store_true", help="only say which")
    socket(prune)


def _quiet(of: argparse.ArgumentParser) -> None:
    of.add_argument("-q", "--quiet", action="store_true", help="say nothing of the progress")
