"""Mappings of a mount: what is refused, and which field is named."""

from __future__ import annotations

import dataclasses

import pytest

from bridge.core import id_mapped
from bridge.core.model import IDMapping, MountPropagation, MountRequest
from bridge.errors import InvalidRequest

ONE = IDMapping(host_id=100000, container_id=0, length=65536)
NEXT = IDMapping(host_id=200000, container_id=65536, length=10)
GOOD = MountRequest("/data", "/vol", uid_mappings=(ONE, NEXT), gid_mappings=(ONE,))


def test_what_is_taken() -> None:
    id_mapped.check(GOOD, "config.mounts[0]")
    id_mapped.check(MountRequest("/data", "/vol", propagation=MountPropagation.BIDIRECTIONAL), "config.mounts[0]")
    assert id_mapped.asked(GOOD)
    assert not id_mapped.asked(MountRequest("/data", "/vol"))


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"uid_mappings": ()}, "uid_mappings"),
        ({"gid_mappings": ()}, "gid_mappings"),
        ({"uid_mappings": (dataclasses.replace(ONE, length=0),)}, "uid_mappings[0].length"),
        ({"uid_mappings": (ONE, dataclasses.replace(NEXT, host_id=2**32 - 5))}, "uid_mappings[1].length"),
        ({"gid_mappings": (ONE, dataclasses.replace(NEXT, container_id=2**32 - 5))}, "gid_mappings[1].length"),
        ({"gid_mappings": (ONE, dataclasses.replace(NEXT, container_id=65535))}, "gid_mappings[1].container_id"),
        ({"uid_mappings": (ONE, dataclasses.replace(NEXT, host_id=99995))}, "uid_mappings[1].host_id"),
        ({"uid_mappings": tuple(IDMapping(n, n, 1) for n in range(341))}, "uid_mappings"),
        ({"propagation": MountPropagation.HOST_TO_CONTAINER}, "propagation"),
        ({"propagation": MountPropagation.BIDIRECTIONAL}, "propagation"),
    ],
)
def test_what_is_refused(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        id_mapped.check(dataclasses.replace(GOOD, **changes), "config.mounts[0]")  # type: ignore[arg-type]
    assert caught.value.field == f"config.mounts[0].{field}"
