"""Runs the unpacking child for one layer: feeds it, watches it, judges its report.

The compressed bytes are hashed here, in a worker thread together with the write to the child, so that a layer's digest is
checked by a process that never interpreted it. Whatever ends this call, the child is gone when it returns.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.util
import math
import os
import sys
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import anyio
import anyio.to_thread

import bridge
from bridge.errors import BridgeError, CorruptData, HostError, LimitExceeded
from bridge.host import process
from bridge.images.artifacts import ArtifactFile
from bridge.images.listing import LISTING
from bridge.images.settings import Limits

_PIPE = 1 << 20
_REPORT_LIMIT = 1 << 20
_NEW = os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC
_CODE = "import sys; sys.path[:0] = sys.argv[1].split(':'); from bridge.images.unpack_child import main; sys.exit(main(sys.argv[2:]))"
# Of glibc: chunks always go back to the system at once. By default it takes to keeping them, and its heap grows with what passes through.
_ALLOCATOR = {"MALLOC_MMAP_THRESHOLD_": str(1 << 17)}
FILES = "fs"
TAR_LOG = "tar.gz"


@dataclass(frozen=True, slots=True)
class Unpacked:
    """A layer as it lies on disk. ``disk_bytes`` is what it takes there, ``implicit`` how many directories its tar did not list.

    ``exact``: its tar can be made again byte for byte from files and log. ``skipped`` counts device nodes and attributes left out.
    """

    diff_id: str
    disk_bytes: int
    inodes: int
    tar_bytes: int
    blob_bytes: int
    exact: bool
    skipped: int
    implicit: int


def import_path() -> str:
    """Where the child finds our package and the decompressors; it starts without site-packages, which saves time."""
    places = [str(Path(bridge.__file__).resolve().parents[1])]
    for name in ("isal", "zstandard"):
        spec = importlib.util.find_spec(name)
        if spec is None or spec.origin is None:
            raise HostError(f"the Python package {name} is missing")
        places.append(str(Path(spec.origin).parents[1]))
    return ":".join(dict.fromkeys(places))


class _Feed:
    """Copies a blob into the child's pipe and hashes it. ``error`` is what the blob's source raised."""

    def __init__(self, blob: AsyncGenerator[bytes], fd: int, algorithm: str, file: ArtifactFile | None) -> None:
        self._blob = blob
        self._fd = fd
        self._file = file
        self._hash = hashlib.new(algorithm)
        self._size = 0
        self.error: BridgeError | None = None

    async def run(self, scope: anyio.CancelScope, limiter: anyio.CapacityLimiter) -> None:
        try:
            async with contextlib.aclosing(self._blob) as chunks:
                if self._file is not None:
                    await anyio.to_thread.run_sync(self._write, self._file.head(), limiter=limiter)
                async for chunk in chunks:
                    await anyio.to_thread.run_sync(self._push, chunk, limiter=limiter)
                if self._file is not None:
                    await anyio.to_thread.run_sync(self._write, self._file.tail(), limiter=limiter)
        except BrokenPipeError:
            return  # the child gave up; its report says why
        except BridgeError as exc:
            self.error = exc
            scope.cancel()
        finally:
            self.close()

    def close(self) -> None:
        """Let the child see the end. Idempotent."""
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def _push(self, chunk: bytes) -> None:
        self._hash.update(chunk)
        self._size += len(chunk)
        self._write(chunk)

    def _write(self, data: bytes) -> None:
        piece = memoryview(data)
        while piece:
            piece = piece[os.write(self._fd, piece) :]

    def check(self, digest: str, size: int | None) -> None:
        found = f"{self._hash.name}:{self._hash.hexdigest()}"
        if found != digest or size not in (None, self._size):
            raise CorruptData(f"layer {digest} is damaged: {self._size} bytes came, with the digest {found}")


class Unpacker:
    """Makes layer directories. One child per layer, as many at once as callers ask for."""

    def __init__(self, limits: Limits) -> None:
        self._limits = limits
        self._path = import_path()
        self._threads = anyio.CapacityLimiter(64)

    async def unpack(self, directory: Path, blob: AsyncGenerator[bytes], digest: str | None, file: ArtifactFile | None = None) -> Unpacked:
        """Unpack ``blob`` into ``directory``, checking that its digest is ``digest`` (None: unknown). With ``file`` it is that file.

        The directory is made here, with ``fs``, ``tar.gz`` and ``files.gz`` in it.

        Raises CorruptData (damaged or refused content), LimitExceeded, HostError, and what ``blob`` raises. On any failure
        the directory is left for the caller to remove.
        """
        (read_end, write_end), logs = await anyio.to_thread.run_sync(_prepare, directory)
        limits = self._limits
        numbers = (read_end, *logs, limits.layer_bytes, limits.layer_entries, limits.ratio)
        content = file.digest if file is not None else "-"
        argv = [sys.executable, "-I", "-S", "-c", _CODE, self._path, str(directory / FILES), *map(str, numbers), content]
        feed = _Feed(blob, write_end, (digest or "sha256:").partition(":")[0], file)
        outcome: process.Completed | BridgeError | None = None
        try:
            async with anyio.create_task_group() as group:
                group.start_soon(feed.run, group.cancel_scope, self._threads)
                outcome = await _run(argv, (read_end, *logs))
                if isinstance(outcome, BridgeError) or outcome.returncode != 0:
                    group.cancel_scope.cancel()
        finally:
            feed.close()
        if feed.error is not None:
            raise feed.error
        if isinstance(outcome, BridgeError):
            raise outcome
        assert outcome is not None
        report = _parse_report(outcome)
        if digest is not None:
            feed.check(digest, file.size if file is not None else None)
        return report if file is None else replace(report, diff_id=file.ident)


async def _run(argv: Sequence[str], descriptors: Sequence[int]) -> process.Completed | BridgeError:
    """Run the child to its end and close our copies of its descriptors; a failure to run it is returned, not raised."""
    environment = {"LC_ALL": "C.UTF-8", **_ALLOCATOR, **{k: v for k, v in os.environ.items() if k == "LD_LIBRARY_PATH"}}
    try:
        return await process.run(argv, env=environment, timeout=math.inf, max_output=_REPORT_LIMIT, pass_fds=descriptors)
    except BridgeError as exc:
        return exc
    finally:
        # With no reader left, a write that still blocks in a thread ends with EPIPE.
        for fd in descriptors:
            os.close(fd)


def _prepare(directory: Path) -> tuple[tuple[int, int], list[int]]:
    """A pipe for the blob, and the new files for the tar log and the listing."""
    opened: list[int] = []
    try:
        (directory / FILES).mkdir(parents=True)
        (directory / FILES).chmod(0o755)
        opened.append(os.open(directory / TAR_LOG, _NEW, 0o600))
        opened.append(os.open(directory / LISTING, _NEW, 0o600))
        ends = os.pipe()
    except OSError as exc:
        for fd in opened:
            os.close(fd)
        raise HostError(f"can't make a layer directory: {exc}", errno=exc.errno) from exc
    with contextlib.suppress(OSError):  # a small pipe is only slower
        fcntl.fcntl(ends[1], fcntl.F_SETPIPE_SZ, _PIPE)
    return ends, opened


def _parse_report(completed: process.Completed) -> Unpacked:
    lines = completed.stdout.decode("utf-8", "replace").splitlines()
    last = lines[-1] if lines else ""
    if completed.returncode == 0 and last == "done":
        values = dict(line.partition(" ")[::2] for line in lines[:-1])
        return Unpacked(
            diff_id=values["diff_id"],
            disk_bytes=int(values["bytes"]),
            inodes=int(values["inodes"]),
            tar_bytes=int(values["tar_bytes"]),
            blob_bytes=int(values["blob_bytes"]),
            exact=values["exact"] == "1",
            skipped=int(values["devices"]) + int(values["xattrs"]),
            implicit=int(values["implicit"]),
        )
    word, _, rest = last.partition(" ")
    kind, _, message = rest.partition(" ")
    if word == "error" and kind in ("stream", "archive"):
        raise CorruptData(f"the layer's archive is refused: {message}")
    if word == "error" and kind == "limit":
        raise LimitExceeded(message)
    if word == "error" and kind == "host":
        code, _, text = message.partition(" ")
        raise HostError(f"unpacking failed: {text}", errno=int(code))
    said = completed.stderr.decode("utf-8", "replace").strip().splitlines()
    raise HostError(f"the unpacking process ended with {completed.returncode}: {said[-1] if said else 'it said nothing'}")
