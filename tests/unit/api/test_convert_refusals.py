"""Whatever arrives in a configuration is converted or refused by its field: unknown enum numbers, random messages."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from bridge._proto.runtime import v1 as pb
from bridge.api import convert, encoding
from bridge.errors import InvalidRequest, Unsupported
from bridge.wire.wiretypes import fields_of
from tests.unit.api.conftest import Google
from tests.unit.api.test_convert_config import full_container, full_pod

UNKNOWN = 4321


def enums(message: Any, path: str) -> Iterator[tuple[Any, str, str]]:
    """(message, field, path) of every enum field that is below ``message``; lists by their first element."""
    for field in fields_of(type(message)):
        value, where = getattr(message, field.name), f"{path}.{field.name}"
        if field.repeated:
            value, where = (value[0] if value else None), f"{where}[0]"
        if field.value.kind == "enum":
            yield message, field.name, where
        elif field.value.kind == "message" and field.key is None and value is not None:
            yield from enums(value, where)


@pytest.mark.parametrize(("make", "function"), [(full_pod, convert.pod_config), (full_container, convert.container_config)])
def test_numbers_of_a_newer_kubelet_are_refused_by_their_field(make: Any, function: Any) -> None:
    found = [path for _, _, path in enums(make(), "config")]
    assert len(found) >= 6
    for index, path in enumerate(found):
        config = make()
        message, name, _ = list(enums(config, "config"))[index]
        setattr(message, name, type(getattr(message, name))(UNKNOWN))
        with pytest.raises(InvalidRequest) as caught:
            function(config)
        assert caught.value.field == path
        assert str(UNKNOWN) in str(caught.value)


@pytest.mark.parametrize(
    ("name", "cls", "function"),
    [("PodSandboxConfig", pb.PodSandboxConfig, convert.pod_config), ("ContainerConfig", pb.ContainerConfig, convert.container_config)],
)
def test_random_messages_are_converted_or_refused_by_a_field(google: Google, name: str, cls: Any, function: Any) -> None:
    told = []
    for seed in range(100):
        message = encoding.decode(cls, google.random(f"runtime.v1.{name}", seed).SerializeToString())
        try:
            function(message)
        except (InvalidRequest, Unsupported) as exc:
            told.append(str(exc))
    assert [each for each in told if not each.startswith("config")] == []
    assert len({each.partition(":")[0] for each in told}) > 3
