"""The codec against its judges: Google's protobuf and betterproto2."""

from __future__ import annotations

import random
from typing import Any

import betterproto2
import pytest

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.message_pool import default_message_pool
from bridge._proto.runtime import v1 as pb
from bridge.api import encoding

MESSAGES = sorted(
    (url.removeprefix("type.googleapis.com/"), cls)
    for url, cls in default_message_pool.url_to_type.items()
    if cls.__module__ in (pb.__name__, admin.__name__)
)


def test_every_message_of_the_proto_files_is_generated(google: Any) -> None:
    assert sorted(name for name, _ in MESSAGES) == sorted(google.names())
    assert sum(name.startswith("runtime.v1.") for name, _ in MESSAGES) == 175


@pytest.mark.parametrize(("name", "cls"), MESSAGES, ids=[name for name, _ in MESSAGES])
def test_round_trip_is_byte_identical(google: Any, name: str, cls: type[betterproto2.Message]) -> None:
    for seed in range(12):
        theirs = google.random(name, seed)
        wire = theirs.SerializeToString(deterministic=True)
        ours = encoding.decode(cls, wire)
        assert encoding.encode(ours) == wire
        assert bytes(ours) == wire
        reference = cls.parse(wire)
        assert ours == reference
        assert vars(ours).keys() == vars(reference).keys()


@pytest.mark.parametrize("name", ["runtime.v1.ContainerStatus", "runtime.v1.RunPodSandboxRequest", "runtime.v1.PodSandboxStats"])
def test_a_newer_peer_does_no_harm(google: Any, name: str) -> None:
    """Unknown fields of every wire type come back unchanged, wherever they stand, and unknown enum numbers too."""
    cls = dict(MESSAGES)[name]
    news = b"".join(
        (
            b"\x98\x3f\x96\x01",  # field 1011, varint
            b"\xa1\x3f12345678",  # field 1012, 8 bytes
            b"\xaa\x3f\x05hello",  # field 1013, length
            b"\xb3\x3f\x08\x01\xb4\x3f",  # field 1014, a group around a varint
            b"\xbd\x3f1234",  # field 1015, 4 bytes
        )
    )
    for seed in range(5):
        wire = google.random(name, seed).SerializeToString(deterministic=True)
        ours = encoding.decode(cls, news + wire)
        assert ours == encoding.decode(cls, wire)
        assert encoding.encode(ours) == wire + news
    status = encoding.decode(pb.ContainerStatus, b"\x18\x63\x98\x01\xe7\x07")
    assert (int(status.state), status.state.name) == (99, "")
    assert int(status.stop_signal) == 999
    assert encoding.encode(status) == b"\x18\x63\x98\x01\xe7\x07"


def test_absent_is_not_zero() -> None:
    absent = encoding.decode(pb.LinuxSandboxSecurityContext, b"")
    zero = encoding.decode(pb.LinuxSandboxSecurityContext, b"\x1a\x00")
    assert absent.run_as_user is None
    assert zero.run_as_user == pb.Int64Value(value=0)
    assert encoding.encode(zero) == b"\x1a\x00"


def test_a_known_number_with_another_wire_type_is_unknown() -> None:
    message = encoding.decode(pb.VersionRequest, b"\x08\x05")
    assert message.version == ""
    assert encoding.encode(message) == b"\x08\x05"


def test_packed_and_unpacked_are_the_same() -> None:
    packed = encoding.decode(pb.PortForwardRequest, b"\x12\x03\x50\xbb\x03")
    unpacked = encoding.decode(pb.PortForwardRequest, b"\x10\x50\x10\xbb\x03")
    assert packed.port == unpacked.port == [80, 443]
    assert encoding.encode(unpacked) == b"\x12\x03\x50\xbb\x03"


def test_a_message_that_comes_twice_is_merged(google: Any) -> None:
    one = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(name="a", attempt=1), labels={"k": "1"})
    two = pb.PodSandboxConfig(metadata=pb.PodSandboxMetadata(namespace="n", attempt=2), labels={"k": "2", "l": "3"})
    wire = encoding.encode(pb.RunPodSandboxRequest(config=one)) + encoding.encode(pb.RunPodSandboxRequest(config=two))
    merged = encoding.decode(pb.RunPodSandboxRequest, wire)
    theirs = google.cls("runtime.v1.RunPodSandboxRequest").FromString(wire)
    assert encoding.encode(merged) == theirs.SerializeToString(deterministic=True)
    assert merged.config is not None
    assert merged.config.metadata == pb.PodSandboxMetadata(name="a", namespace="n", attempt=2)


@pytest.mark.parametrize("name", ["runtime.v1.CreateContainerRequest", "runtime.v1.ListContainersResponse", "runtime.v1.PodSandboxStats"])
def test_cut_input_is_refused_exactly_where_google_refuses_it(google: Any, name: str) -> None:
    cls, theirs = dict(MESSAGES)[name], google.cls(name)
    wire = google.random(name, 3).SerializeToString(deterministic=True)
    for end in [*range(min(len(wire), 400)), *range(400, len(wire), 37)]:
        try:
            expected = theirs.FromString(wire[:end]).SerializeToString(deterministic=True)
        except Exception:  # noqa: BLE001 - Google's DecodeError
            with pytest.raises(ValueError, match="malformed"):
                encoding.decode(cls, wire[:end])
        else:
            assert encoding.encode(encoding.decode(cls, wire[:end])) == expected


def test_damaged_input_raises_nothing_but_value_error(google: Any) -> None:
    rng = random.Random(7)
    for seed in range(300):
        wire = bytearray(google.random("runtime.v1.CreateContainerRequest", seed % 20).SerializeToString(deterministic=True))
        for _ in range(rng.randint(1, 4)):
            if wire:
                wire[rng.randrange(len(wire))] = rng.randrange(256)
        try:
            message = encoding.decode(pb.CreateContainerRequest, bytes(wire))
        except ValueError:
            continue
        encoding.decode(pb.CreateContainerRequest, encoding.encode(message))


@pytest.mark.parametrize("wire", [b"\x00\x01", b"\x0b" * 100_000, b"\x0f", b"\x0c", b"\x0a\x02\xff\xfe", b"\x0a" + b"\xff" * 10 + b"\x01"])
def test_nonsense_is_refused(wire: bytes) -> None:
    with pytest.raises(ValueError, match="malformed VersionRequest"):
        encoding.decode(pb.VersionRequest, wire)


def test_values_that_do_not_fit_are_refused() -> None:
    with pytest.raises(ValueError, match="64 bits"):
        encoding.encode(pb.Int64Value(value=1 << 64))
    with pytest.raises(AttributeError):
        encoding.encode(pb.VersionRequest(version=5))  # type: ignore[arg-type]


def test_a_list_of_pieces_is_the_list() -> None:
    items = [pb.Container(id=f"{number:064x}", labels={"app": "x" * number}) for number in range(0, 400, 7)]
    joined = encoding.ready(pb.ListContainersResponse, [encoding.piece(1, item) for item in items])
    assert isinstance(joined, encoding.Ready)
    assert joined.data == bytes(pb.ListContainersResponse(containers=items))
    assert encoding.decode(pb.ListContainersResponse, joined.data).containers == items


def test_the_codec_sends_ready_bytes_as_they_are_and_refuses_other_types() -> None:
    codec = encoding.WireCodec()
    assert codec.encode(encoding.Ready(pb.VersionResponse, b"anything"), pb.VersionResponse) == b"anything"
    for wrong in (encoding.Ready(pb.VersionRequest, b""), pb.VersionRequest(), None):
        with pytest.raises(TypeError, match="a VersionResponse is due"):
            codec.encode(wrong, pb.VersionResponse)
    assert codec.decode(b"\x0a\x01x", pb.VersionRequest) == pb.VersionRequest(version="x")
