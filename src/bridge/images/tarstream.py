"""A reader of tar streams that does no I/O: chunks of bytes in, members out (ustar, PAX, GNU; POSIX.1-2017 "pax").

Made for layers: strict where a lenient reader would guess, bounded in what it buffers, and it hands every byte that is not file
content to ``log``, so that a layer's tar can be made again from the log and the files (see docs/adr/0003-image-store.md). Names stay bytes.
Runs in the unpacking child, whose start-up time counts: it imports next to nothing.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bridge.images import tarsparse

BLOCK = 512
MAX_EXTENSION = 1 << 20
"""Most bytes that the PAX, GNU long-name and sparse headers of one member may take."""

REGULAR = frozenset(b"0\x007S")
HARDLINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO = b"123456"
_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK, _GNU_SPARSE = b"xgLKS"
_KNOWN = REGULAR | frozenset((HARDLINK, SYMLINK, CHARDEV, BLOCKDEV, DIRECTORY, FIFO))
_ZERO = bytes(BLOCK)
_XATTR = b"SCHILY.xattr."


class BadArchive(Exception):
    """The bytes are not a tar that we accept."""


class ChunkReader:
    """Exact and bounded reads over an iterator of chunks."""

    __slots__ = ("_buffer", "_chunks", "_position")

    def __init__(self, chunks: Iterator[bytes]) -> None:
        self._chunks = chunks
        self._buffer = b""
        self._position = 0

    def _fill(self) -> bool:
        for chunk in self._chunks:
            if chunk:
                self._buffer, self._position = chunk, 0
                return True
        self._buffer, self._position = b"", 0
        return False

    def some(self, limit: int) -> memoryview:
        """Between 1 and ``limit`` bytes; empty at the end of the stream."""
        if self._position >= len(self._buffer) and not self._fill():
            return memoryview(b"")
        start = self._position
        self._position = min(start + limit, len(self._buffer))
        return memoryview(self._buffer)[start : self._position]

    def exactly(self, size: int) -> bytes:
        """``size`` bytes, or fewer only when the stream ends before."""
        start = self._position
        if start + size <= len(self._buffer):
            self._position = start + size
            return self._buffer[start : start + size]
        parts = []
        while size:
            part = self.some(size)
            if not part:
                break
            parts.append(part)
            size -= len(part)
        return b"".join(parts)


class Member:
    """One member. ``size`` counts the content bytes in the stream, ``real_size`` the file's length (differs when sparse).

    ``segments`` is None for a plain file, else (offset, length) of each piece of data. ``mtime`` is in ns.
    """

    __slots__ = ("gid", "link", "mode", "mtime", "name", "real_size", "segments", "size", "type", "uid", "xattrs")

    def __init__(self, header: bytes) -> None:
        self.type = header[156]
        self.name = _text(header[0:100])
        if header[257:263] == b"ustar\0" and header[345]:
            self.name = _text(header[345:500]) + b"/" + self.name
        self.link = _text(header[157:257])
        self.mode = number(header[100:108]) & 0o7777
        self.uid = number(header[108:116])
        self.gid = number(header[116:124])
        self.size = number(header[124:136])
        self.mtime = number(header[136:148]) * 1_000_000_000
        self.real_size = self.size
        self.segments: list[tuple[int, int]] | None = None
        self.xattrs: list[tuple[bytes, bytes]] = []


def _text(field: bytes) -> bytes:
    return field.partition(b"\0")[0]


def number(field: bytes) -> int:
    """A numeric header field: octal digits, or base 256 when its first bit is set (GNU)."""
    if field[0] & 0x80:
        value = int.from_bytes(field, "big") & ((1 << (8 * len(field) - 1)) - 1)
        return value - (1 << (8 * len(field) - 1)) if field[0] & 0x40 else value
    digits = field.strip(b" \0")
    if not digits:
        return 0
    try:
        return int(_text(digits), 8)
    except ValueError:
        raise BadArchive(f"header field {field!r} is not a number") from None


def parse_pax(data: bytes) -> list[tuple[bytes, bytes]]:
    """The (keyword, value) records of a PAX extended header, in order. Raises BadArchive."""
    records = []
    position = 0
    while position < len(data):
        if data[position] == 0:  # some writers pad with NULs
            break
        digits, space, _ = data[position : position + 20].partition(b" ")
        if not space or not digits.isdigit():
            raise BadArchive("PAX record without a length")
        end = position + int(digits)
        record = data[position + len(digits) + 1 : end]
        keyword, equals, value = record.partition(b"=")
        if not equals or not value.endswith(b"\n") or end > len(data):
            raise BadArchive("PAX record is malformed")
        records.append((keyword, value[:-1]))
        position = end
    return records


def _decimal(value: bytes, what: str) -> int:
    if not value.isdigit() or len(value) > 19:
        raise BadArchive(f"PAX {what} {value[:40]!r} is not a number")
    return int(value)


def _timestamp(value: bytes) -> int:
    whole, _, fraction = value.partition(b".")
    negative = whole.startswith(b"-")
    seconds = _decimal(whole[1:] if negative else whole, "mtime")
    if fraction and not fraction.isdigit():
        raise BadArchive(f"PAX mtime {value[:40]!r} is not a number")
    nanoseconds = seconds * 1_000_000_000 + int((fraction[:9] + b"000000000")[:9])
    return -nanoseconds if negative else nanoseconds


def _apply_pax(member: Member, records: list[tuple[bytes, bytes]]) -> list[tuple[bytes, bytes]]:
    """Apply ``records`` to ``member``; those about sparse files are returned."""
    sparse = []
    for keyword, value in records:
        if keyword == b"path":
            member.name = value
        elif keyword == b"linkpath":
            member.link = value
        elif keyword == b"size":
            member.size = member.real_size = _decimal(value, "size")
        elif keyword == b"uid":
            member.uid = _decimal(value, "uid")
        elif keyword == b"gid":
            member.gid = _decimal(value, "gid")
        elif keyword == b"mtime":
            member.mtime = _timestamp(value)
        elif keyword.startswith(_XATTR):
            member.xattrs.append((keyword[len(_XATTR) :], value))
        elif keyword.startswith(b"GNU.sparse."):
            sparse.append((keyword[len(b"GNU.sparse.") :], value))
    return sparse


class TarReader:
    """Iterate its members; between two steps ``content`` gives the current member's bytes. What is left unread goes to ``log``."""

    def __init__(self, chunks: Iterator[bytes], log: Callable[[bytes], object] = lambda _: None) -> None:
        self._reader = ChunkReader(chunks)
        self._log = log
        self._left = 0
        self._padding = 0

    def __iter__(self) -> Iterator[Member]:
        while (header := self._header()) is not None and (member := self._member(header)) is not None:
            yield member
            self._finish_member()
        while rest := self._reader.some(1 << 20):
            self._log(bytes(rest))

    def content(self) -> Iterator[memoryview]:
        """The content of the current member, in pieces as they come."""
        while self._left:
            piece = self._reader.some(self._left)
            if not piece:
                raise BadArchive("the archive ends within a file")
            self._left -= len(piece)
            yield piece

    def _take(self, size: int, what: str) -> bytes:
        data = self._reader.exactly(size)
        if len(data) != size:
            raise BadArchive(f"the archive ends within {what}")
        self._log(data)
        return data

    def _header(self) -> bytes | None:
        """The next header block; None at the end: two zero blocks, or the end of the stream."""
        block = self._reader.exactly(BLOCK)
        if not block:
            return None
        self._log(block)
        if len(block) != BLOCK:
            raise BadArchive("the archive ends within a header")
        if block == _ZERO:
            following = self._reader.exactly(BLOCK)
            self._log(following)
            if following.strip(b"\0"):
                raise BadArchive("a zero block amid the archive")
            return None
        # The sum is over the block with its own field read as spaces; some old writers summed signed bytes.
        expected = number(block[148:156])
        if sum(block) - sum(block[148:156]) + 256 != expected and not _signed_sum_is(block, expected):
            raise BadArchive("header checksum is wrong")
        return block

    def _finish_member(self) -> None:
        for piece in self.content():
            self._log(bytes(piece))
        if self._padding:
            self._take(self._padding, "padding")

    def _extension(self, header: bytes, budget: int) -> bytes:
        size = number(header[124:136])
        if not 0 <= size <= budget:
            raise BadArchive(f"extended header of {size} bytes (at most {MAX_EXTENSION} a member)")
        return self._take(size + (-size % BLOCK), "an extended header")[:size]

    def _member(self, header: bytes) -> Member | None:
        name = link = None
        records: list[tuple[bytes, bytes]] = []
        budget = MAX_EXTENSION
        while header[156] in (_PAX, _PAX_GLOBAL, _GNU_NAME, _GNU_LINK):
            data = self._extension(header, budget)
            budget -= len(data) + BLOCK
            if header[156] == _PAX:
                records += parse_pax(data)
            elif header[156] == _GNU_NAME:
                name = _text(data)
            elif header[156] == _GNU_LINK:
                link = _text(data)
            following = self._header()
            if following is None:
                if header[156] == _PAX_GLOBAL and not records and name is None:
                    return None
                raise BadArchive("the archive ends after an extended header")
            header = following
        member = Member(header)
        member.name = member.name if name is None else name
        member.link = member.link if link is None else link
        return self._complete(member, header, _apply_pax(member, records), budget)

    def _complete(self, member: Member, header: bytes, sparse: list[tuple[bytes, bytes]], budget: int) -> Member:
        if member.type not in _KNOWN:
            raise BadArchive(f"{member.name!r} has the unknown type {chr(member.type)!r}")
        if member.type == 0 and member.name.endswith(b"/"):
            member.type = DIRECTORY
        if member.type not in REGULAR:
            member.size = member.real_size = 0
        if member.size < 0 or not 0 <= member.uid < 0xFFFFFFFF or not 0 <= member.gid < 0xFFFFFFFF:
            raise BadArchive(f"{member.name!r} has a size or owner out of range")
        if b"\0" in member.name or b"\0" in member.link:
            raise BadArchive(f"{member.name!r} has a NUL in its name or link")
        self._left, self._padding = member.size, -member.size % BLOCK
        try:
            if member.type == _GNU_SPARSE:
                tarsparse.read_old(member, header, lambda: self._take(BLOCK, "a sparse map"), budget)
            elif sparse and member.type in REGULAR:
                self._left -= tarsparse.read_pax(member, sparse, lambda: self._take(BLOCK, "a sparse map"), budget)
        except ValueError as exc:
            raise BadArchive(f"{member.name!r}: {exc}") from exc
        return member


def _signed_sum_is(block: bytes, expected: int) -> bool:
    signed = sum(block) - 256 * sum(byte > 127 for byte in block)
    own = block[148:156]
    return signed - (sum(own) - 256 * sum(byte > 127 for byte in own)) + 256 == expected
