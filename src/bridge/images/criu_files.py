"""What CRIU's images say of a container's root directory: its mode, which CRIU demands of the one that it restores into.

Engines differ in what an image's root directory has when its layers say nothing: 0755, or 0555 with podman and CRI-O.
Source: CRIU images/magic.h, images/fdinfo.proto (file_entry), images/regfile.proto; Protocol Buffers' wire format.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from pathlib import Path

_NAME = "files.img"
_HEADER = 8
_BYTES = 64 << 20
_REG, _REG_NAME, _REG_MODE = 3, 6, 10
_VARINT, _FIXED64, _BYTES_TYPE, _FIXED32 = 0, 1, 2, 5


def root_mode(images: Path) -> int | None:
    """Permissions that the root directory had, None where nothing tells. Blocks; whatever is odd in the file tells nothing."""
    try:
        with open(os.open(images / _NAME, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC), "rb") as stream:
            text = stream.read(_BYTES)
        for entry in _entries(text):
            fields = dict(_fields(entry))
            reg = fields.get(_REG)
            found = dict(_fields(reg)) if isinstance(reg, bytes) else {}
            name, mode = found.get(_REG_NAME), found.get(_REG_MODE)
            if name in (b"/", b".") and isinstance(mode, int) and stat.S_ISDIR(mode):
                return stat.S_IMODE(mode)
    except (OSError, ValueError, IndexError):
        return None
    return None


def _entries(text: bytes) -> Iterator[bytes]:
    at = _HEADER
    while at + 4 <= len(text):
        size = int.from_bytes(text[at : at + 4], "little")
        yield text[at + 4 : at + 4 + size]
        at += 4 + size


def _fields(text: bytes) -> Iterator[tuple[int, int | bytes]]:
    at = 0
    while at < len(text):
        key, at = _varint(text, at)
        kind = key & 7
        if kind == _VARINT:
            value, at = _varint(text, at)
            yield key >> 3, value
            continue
        if kind == _BYTES_TYPE:
            size, at = _varint(text, at)
        elif kind in (_FIXED32, _FIXED64):
            size = 4 if kind == _FIXED32 else 8
        else:
            raise ValueError(f"wire type {kind}")
        yield key >> 3, text[at : at + size]
        at += size


def _varint(text: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = text[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if not byte & 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of more than 64 bits")
