"""What strangers write and the image store or a shim's caller reads, one function each: any bytes go in, and only the errors named
here may come out.

``python -m tests.fuzz TARGET`` runs one under atheris for as long as you like; tests/unit/images/test_fuzz.py runs all of them for a
fixed number of rounds, mutating the corpus beside this file. A crash that was found becomes a file of the corpus.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from pathlib import Path

from bridge._proto.containerd.services.events.ttrpc.v1 import ForwardRequest
from bridge._proto.containerd.task.v2 import StateResponse
from bridge._proto.io.containerd.cgroups.v1 import Metrics
from bridge._proto.ttrpc import Request, Response
from bridge.errors import ConfigError, CorruptData, ImagePullFailed, InvalidRequest, Unsupported
from bridge.images import auth, decompress, hosts_toml, reference, registries_conf
from bridge.images.artifacts import files
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.images.extract import clean
from bridge.images.manifest import Index, Platform, parse, parse_config
from bridge.images.platforms import choose
from bridge.images.reference import Reference
from bridge.images.tarstream import BadArchive, TarReader
from bridge.shimv2 import encoding, frames
from bridge.shimv2.addresses import socket_name
from bridge.shimv2.bootstrap import parse_start
from bridge.shimv2.events import event
from bridge.shimv2.frames import HEADER, MAX_DATA, Decoder, Frame, Oversized
from bridge.shimv2.statuses import error_of
from bridge.wire.codec import encode

CORPUS = Path(__file__).parent / "corpus"
_EXAMPLE = reference.parse("registry.example/team/app:1")
_MOST = 64 << 20


def _manifest(data: bytes) -> None:
    try:
        found = parse(data)
        if isinstance(found, Index):
            choose(found, Platform("linux", "amd64"))
        elif found.artifact:
            assert not any(part in ("", "..") for file in files(found) for part in file.path.split("/"))
    except (CorruptData, Unsupported):
        return


def _config(data: bytes) -> None:
    try:
        parse_config(data)
    except CorruptData:
        return


def _tar(data: bytes) -> None:
    """Every byte is content or in the log, whatever the archive says."""
    logged = [0]

    def log(piece: bytes) -> None:
        logged[0] += len(piece)

    def chunks() -> Iterator[bytes]:
        for start in range(0, len(data), 700):
            yield data[start : start + 700]

    content = 0
    reader = TarReader(chunks(), log)
    try:
        for member in reader:
            assert b"\0" not in member.name
            assert member.size >= 0
            for offset, length in member.segments or ():
                assert 0 <= offset <= offset + length <= member.real_size
            content += sum(len(piece) for piece in reader.content())
            assert b".." not in clean(member.name, member.name).split(b"/")
    except BadArchive:
        return
    assert logged[0] + content == len(data)


def _registries_conf(data: bytes) -> None:
    try:
        conf = registries_conf.overlaid(registries_conf.RegistriesConf(), data.decode("utf-8", "replace"), "registries.conf")
        conf.routes(_EXAMPLE)
    except ConfigError:
        return


def _hosts_toml(data: bytes) -> None:
    try:
        hosts_toml.parse(data.decode("utf-8", "replace"), Path("/nowhere/hosts.toml"), _EXAMPLE)
    except ConfigError:
        return


def _reference(data: bytes) -> None:
    text = data.decode("utf-8", "replace")
    reference.id_prefix(text)
    try:
        parsed = reference.parse(text)
    except InvalidRequest:
        return
    assert isinstance(parsed, Reference)
    assert reference.parse(str(parsed)) == parsed


def _challenge(data: bytes) -> None:
    for challenge in auth.parse_challenges(data.decode("latin-1")):
        assert challenge.scheme == challenge.scheme.lower()
        try:
            auth.token_request(challenge, auth.Credentials(username="u", password="p"), "repository:a:pull", allow_http=False)
        except ImagePullFailed:
            continue


def _stream(data: bytes) -> None:
    source = Source(io.BytesIO(data).read)
    try:
        for piece in decompress.limited(decompress.open_stream(source), source, _MOST, 1000):
            assert len(piece) <= decompress.CHUNK
    except (BadStream, TooBig):
        return


def _ttrpc(data: bytes) -> None:
    """A connection's bytes, in pieces: frames, what they hold, and what that holds."""
    decoder = Decoder()
    length = 0
    try:
        for start in range(0, len(data), 700):
            for frame in decoder.feed(data[start : start + 700]):
                assert 0 <= frame.stream < 1 << 32
                length += HEADER
                if isinstance(frame, Oversized):
                    assert MAX_DATA < frame.length < 1 << 24
                    continue
                length += len(frame.data)
                assert frames.encode(frame.stream, frame.kind, frame.flags, frame.data) in data
                _ttrpc_message(frame)
    except CorruptData:
        return
    assert length <= len(data)


def _ttrpc_message(frame: Frame) -> None:
    with suppress(CorruptData, InvalidRequest):
        request = encoding.decode(Request, frame.data)
        event(encoding.decode(ForwardRequest, request.payload))
    with suppress(CorruptData):
        response = encoding.decode(Response, frame.data)
        if response.status is not None:
            error_of(response.status.code, response.status.message, handler="h", method="m")
        state = encoding.decode(StateResponse, response.payload)
        assert 0 <= encoding.nanoseconds(state.exited_at) < 1 << 63
        encoding.decode(Metrics, encode(encoding.decode(Metrics, response.payload)))


def _shim_start(data: bytes) -> None:
    try:
        address = parse_start(data)
    except (CorruptData, Unsupported, InvalidRequest):
        return
    assert address.version in (2, 3)
    assert socket_name(address.address)


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "manifest": _manifest,
    "config": _config,
    "tar": _tar,
    "registries_conf": _registries_conf,
    "hosts_toml": _hosts_toml,
    "reference": _reference,
    "challenge": _challenge,
    "stream": _stream,
    "ttrpc": _ttrpc,
    "shim_start": _shim_start,
}


def corpus(target: str) -> list[bytes]:
    """The examples of ``target``, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
