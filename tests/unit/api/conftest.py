"""Google's protobuf, compiled from our own .proto files at test time: the judge of the wire format."""

from __future__ import annotations

import math
import random
import string
from pathlib import Path
from typing import Any

import pytest
from google.protobuf import descriptor_pb2, descriptor_pool, message_factory
from google.protobuf.descriptor import FieldDescriptor
from google.protobuf.message import Message as GoogleMessage
from grpc_tools import protoc

ROOT = Path(__file__).resolve().parents[3]
SOURCES = ("runtime/v1/api.proto", "bridge/admin/v1/admin.proto")


class Google:
    """Message classes of Google's protobuf by full name, and random values for them."""

    def __init__(self, descriptor_set: bytes) -> None:
        pool = descriptor_pool.DescriptorPool()
        self.files = descriptor_pb2.FileDescriptorSet.FromString(descriptor_set).file
        for file in self.files:
            pool.Add(file)
        self._pool = pool

    def names(self) -> list[str]:
        return [f"{file.package}.{message.name}" for file in self.files for message in file.message_type]

    def cls(self, name: str) -> type[GoogleMessage]:
        return message_factory.GetMessageClass(self._pool.FindMessageTypeByName(name))

    def random(self, name: str, seed: int) -> GoogleMessage:
        """A message with a random part of its fields set, to a depth of three and more."""
        message = self.cls(name)()
        _populate(message, random.Random(f"{name} {seed}"), depth=0)
        return message


def _populate(message: Any, rng: random.Random, depth: int) -> None:
    for field in message.DESCRIPTOR.fields:
        if rng.random() < 0.25:
            continue
        if field.message_type is not None and field.message_type.GetOptions().map_entry:
            _populate_map(message, field, rng, depth)
        elif field.is_repeated:
            for _ in range(rng.choice((0, 1, 2, 5))):
                _append(getattr(message, field.name), field, rng, depth)
        elif field.message_type is not None:
            if depth < 6:
                inner = getattr(message, field.name)
                inner.SetInParent()
                _populate(inner, rng, depth + 1)
        else:
            setattr(message, field.name, _scalar(field, rng))


def _populate_map(message: Any, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    entry = field.message_type
    assert entry is not None
    key, value = entry.fields_by_name["key"], entry.fields_by_name["value"]
    target = getattr(message, field.name)
    for _ in range(rng.choice((0, 1, 3))):
        if value.message_type is not None:
            _populate(target[_scalar(key, rng)], rng, depth + 1)
        else:
            target[_scalar(key, rng)] = _scalar(value, rng)


def _append(target: Any, field: FieldDescriptor, rng: random.Random, depth: int) -> None:
    if field.message_type is None:
        target.append(_scalar(field, rng))
    else:
        inner = target.add()
        if depth < 6:
            _populate(inner, rng, depth + 1)


_RANGES = {
    FieldDescriptor.CPPTYPE_INT32: (-(1 << 31), (1 << 31) - 1),
    FieldDescriptor.CPPTYPE_INT64: (-(1 << 63), (1 << 63) - 1),
    FieldDescriptor.CPPTYPE_UINT32: (0, (1 << 32) - 1),
    FieldDescriptor.CPPTYPE_UINT64: (0, (1 << 64) - 1),
}


def _scalar(field: FieldDescriptor, rng: random.Random) -> Any:
    kind = field.cpp_type
    if kind in _RANGES:
        low, high = _RANGES[kind]
        return rng.choice((low, high, 0, 1, 127, 128, 300, 16383, 16384, rng.randint(low, high)))
    if kind == FieldDescriptor.CPPTYPE_BOOL:
        return rng.random() < 0.7
    if kind == FieldDescriptor.CPPTYPE_ENUM:
        assert field.enum_type is not None
        return rng.choice([*(value.number for value in field.enum_type.values), 9999])
    if kind == FieldDescriptor.CPPTYPE_DOUBLE:
        return rng.choice((0.0, 1.5, -2.25, math.inf, rng.random() * 1e9))
    if kind == FieldDescriptor.CPPTYPE_FLOAT:
        return rng.choice((0.0, 1.5, -2.25, math.inf))
    size = rng.choice((0, 1, 7, 40, 63, 64, 127, 128, 300))
    if field.type == FieldDescriptor.TYPE_BYTES:
        return rng.randbytes(size)
    return "".join(rng.choice(string.ascii_letters + "äß€😀/.-_%'\"") for _ in range(size))


def compile_set(out: Path, include: Path, sources: tuple[str, ...]) -> Google:
    """Run protoc on ``sources``."""
    target = out / "descriptors.pb"
    assert protoc.main(["protoc", f"-I{include}", f"--descriptor_set_out={target}", "--include_imports", *sources]) == 0
    return Google(target.read_bytes())


@pytest.fixture(scope="session")
def google(tmp_path_factory: pytest.TempPathFactory) -> Google:
    """Our own .proto files, as Google's protobuf sees them."""
    return compile_set(tmp_path_factory.mktemp("protoc"), ROOT / "proto", SOURCES)
