"""Small OCI images made in memory, for tests and demonstrations. No external tool, no network, same bytes every time.

``write_busybox_layout`` makes the one image that most people want; ``Layout`` builds anything else: several layers,
compressions, platforms, names. The result is an OCI image layout directory (image-spec, image-layout.md).
"""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import tarfile
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import zstandard

from bridge.errors import HostError

MANIFEST_TYPE = "application/vnd.oci.image.manifest.v1+json"
INDEX_TYPE = "application/vnd.oci.image.index.v1+json"
CONFIG_TYPE = "application/vnd.oci.image.config.v1+json"
LAYER_TYPE = "application/vnd.oci.image.layer.v1.tar"
REF_NAME = "org.opencontainers.image.ref.name"

_APPLET_NAMES = (
    "ash awk base64 basename cat chmod chown clear cp cut date dd df dirname dmesg du echo env expr false find free grep gunzip gzip head "
    "hostname hostid id ifconfig ip kill killall less ln ls md5sum mkdir mkfifo mknod mktemp more mount mv nc netstat nslookup "
    "ping ping6 printf ps pwd readlink realpath rm rmdir route sed seq setsid sh sha256sum sleep sort stat stty "
    "sync tail tar tee telnet test time timeout top touch tr true tty udhcpc umount uname uniq uptime vi watch wc wget which whoami "
    "xargs yes zcat httpd"
)
APPLETS = tuple(_APPLET_NAMES.split())

_PASSWD = b"root:x:0:0:root:/root:/bin/sh\ndaemon:x:1:1:daemon:/:/bin/false\nnobody:x:65534:65534:nobody:/:/bin/false\n"
_GROUP = b"root:x:0:\ndaemon:x:1:\nwheel:x:10:root\nnogroup:x:65534:\n"

Json = Mapping[str, Any]


@dataclass(frozen=True, slots=True)
class Entry:
    """One tar entry. ``type`` is a tarfile type constant; ``pax`` are extra PAX records (e.g. ``SCHILY.xattr.user.x``)."""

    name: str
    data: bytes = b""
    type: bytes = tarfile.REGTYPE
    mode: int = 0o644
    uid: int = 0
    gid: int = 0
    link: str = ""
    mtime: float = 0
    device: tuple[int, int] = (0, 0)
    pax: Mapping[str, str] = field(default_factory=dict)


def directory(name: str, mode: int = 0o755) -> Entry:
    """A directory entry."""
    return Entry(name, type=tarfile.DIRTYPE, mode=mode)


def symlink(name: str, target: str) -> Entry:
    """A symbolic link entry."""
    return Entry(name, type=tarfile.SYMTYPE, link=target, mode=0o777)


def hardlink(name: str, target: str) -> Entry:
    """A hard link entry to the earlier entry ``target``."""
    return Entry(name, type=tarfile.LNKTYPE, link=target)


def tar(entries: Iterable[Entry]) -> bytes:
    """An uncompressed PAX tar of ``entries``, in order and unchecked, so hostile ones can be made too."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as archive:
        for entry in entries:
            info = tarfile.TarInfo(entry.name)
            info.type, info.mode, info.uid, info.gid = entry.type, entry.mode, entry.uid, entry.gid
            info.linkname, info.mtime, info.size = entry.link, entry.mtime, len(entry.data)
            info.devmajor, info.devminor = entry.device
            info.pax_headers = dict(entry.pax)
            archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def compress(data: bytes, compression: str) -> bytes:
    """``data`` as "gzip", "zstd" or "" (as it is)."""
    if compression == "gzip":
        return gzip.compress(data, compresslevel=1, mtime=0)
    return zstandard.compress(data) if compression == "zstd" else data


def digest(data: bytes) -> str:
    """``sha256:…`` of ``data``."""
    return "sha256:" + hashlib.sha256(data).hexdigest()


class Layout:
    """An OCI image layout being written to the directory ``path``; call ``close`` (or use ``with``) to write its index."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._manifests: list[Json] = []
        (path / "blobs" / "sha256").mkdir(parents=True, exist_ok=True)

    def __enter__(self) -> Layout:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Write ``oci-layout`` and ``index.json``."""
        (self.path / "oci-layout").write_text('{"imageLayoutVersion":"1.0.0"}')
        (self.path / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": self._manifests}))

    def blob(self, data: bytes, media_type: str) -> dict[str, Any]:
        """Store ``data``; its descriptor."""
        name = digest(data)
        (self.path / "blobs" / "sha256" / name.removeprefix("sha256:")).write_bytes(data)
        return {"mediaType": media_type, "digest": name, "size": len(data)}

    def image(
        self,
        name: str | None,
        layers: Sequence[bytes],
        *,
        compression: str = "gzip",
        config: Json | None = None,
        architecture: str = "amd64",
        variant: str = "",
        annotations: Json | None = None,
    ) -> dict[str, Any]:
        """Add an image of uncompressed tar ``layers``; its manifest's descriptor. ``name`` None keeps it out of the index.

        ``config`` is the image config's ``config`` object (Cmd, Env, User …), ``annotations`` are the manifest's.
        """
        suffix = f"+{compression}" if compression else ""
        platform = {"architecture": architecture, "os": "linux", **({"variant": variant} if variant else {})}
        document = {
            **platform,
            "config": dict(config or {}),
            "rootfs": {"type": "layers", "diff_ids": [digest(layer) for layer in layers]},
        }
        manifest = {
            "schemaVersion": 2,
            "mediaType": MANIFEST_TYPE,
            "config": self.blob(json.dumps(document).encode(), CONFIG_TYPE),
            "layers": [self.blob(compress(layer, compression), LAYER_TYPE + suffix) for layer in layers],
            **({"annotations": annotations} if annotations else {}),
        }
        return self.add(name, {**self.blob(json.dumps(manifest).encode(), MANIFEST_TYPE), "platform": platform})

    def index(self, name: str | None, manifests: Sequence[Json]) -> dict[str, Any]:
        """Add an image index of ``manifests`` (descriptors with platforms); its descriptor."""
        document = {"schemaVersion": 2, "mediaType": INDEX_TYPE, "manifests": list(manifests)}
        return self.add(name, self.blob(json.dumps(document).encode(), INDEX_TYPE))

    def add(self, name: str | None, descriptor: dict[str, Any]) -> dict[str, Any]:
        """List ``descriptor`` in the layout's index under ``name`` (None: don't); returns it."""
        if name is not None:
            self._manifests.append({**descriptor, "annotations": {REF_NAME: name}})
        return descriptor


def busybox_layer(busybox: Path) -> bytes:
    """A tar with ``busybox`` (a static binary), links for its applets, and the files that a small root filesystem needs."""
    entries = [directory(name) for name in ("bin", "etc", "home", "lib", "proc", "root", "sys", "usr", "usr/bin", "var")]
    entries += [directory("tmp", 0o1777), Entry("etc/passwd", _PASSWD), Entry("etc/group", _GROUP)]
    entries += [Entry("bin/busybox", busybox.read_bytes(), mode=0o755)]
    entries += [symlink(f"bin/{applet}", "busybox") for applet in APPLETS]
    return tar([*entries, symlink("usr/bin/env", "../../bin/busybox")])


def write_busybox_layout(
    path: Path, name: str = "localhost/busybox:latest", busybox: Path = Path("/bin/busybox"), *, config: Json | None = None
) -> str:
    """Make an OCI layout at ``path`` with one image ``name`` of one layer, made of the static binary ``busybox``.

    Its command is ``sh`` unless ``config`` (an image config's ``config`` object) says otherwise. Returns the manifest's
    digest. Raises HostError when the binary can't be read.
    """
    try:
        layer = busybox_layer(busybox)
    except OSError as exc:
        raise HostError(f"can't read {busybox} (install busybox-static): {exc.strerror}", errno=exc.errno) from exc
    default = {"Cmd": ["sh"], "Env": ["PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"]}
    with Layout(path) as layout:
        descriptor = layout.image(name, [layer], config={**default, **(config or {})})
    return str(descriptor["digest"])
