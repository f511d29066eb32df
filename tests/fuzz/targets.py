"""What strangers write and the image store reads, one function each: any bytes go in, and only the errors named here may come out.

``python -m tests.fuzz TARGET`` runs one under atheris for as long as you like; tests/unit/images/test_fuzz.py runs all of them for a
fixed number of rounds, mutating the corpus beside this file. A crash that was found becomes a file of the corpus.
"""

from __future__ import annotations

import io
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from bridge.errors import ConfigError, CorruptData, ImagePullFailed, InvalidRequest, Unsupported
from bridge.images import auth, decompress, hosts_toml, reference, registries_conf
from bridge.images.decompress import BadStream, Source, TooBig
from bridge.images.extract import clean
from bridge.images.manifest import Index, Platform, parse, parse_config
from bridge.images.platforms import choose
from bridge.images.reference import Reference
from bridge.images.tarstream import BadArchive, TarReader

CORPUS = Path(__file__).parent / "corpus"
_EXAMPLE = reference.parse("registry.example/team/app:1")
_MOST = 64 << 20


def _manifest(data: bytes) -> None:
    try:
        found = parse(data)
        if isinstance(found, Index):
            choose(found, Platform("linux", "amd64"))
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


TARGETS: Mapping[str, Callable[[bytes], None]] = {
    "manifest": _manifest,
    "config": _config,
    "tar": _tar,
    "registries_conf": _registries_conf,
    "hosts_toml": _hosts_toml,
    "reference": _reference,
    "challenge": _challenge,
    "stream": _stream,
}


def corpus(target: str) -> list[bytes]:
    """The examples of ``target``, in a fixed order."""
    return [path.read_bytes() for path in sorted((CORPUS / target).iterdir())]
