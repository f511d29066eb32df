"""Image volumes: what is refused from the request alone, and which image a mount means."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import pytest

from bridge.core import image_volumes, volumes
from bridge.core.model import ImageSpec, MountPropagation, MountRequest
from bridge.errors import ImageVolumeMountFailed, InvalidRequest
from bridge.ports.images import Image
from bridge.testing.fake_stores import IMAGE
from tests.unit.core.spec_cases import config

GOOD = MountRequest("/models", readonly=True, image=ImageSpec(IMAGE.id), image_sub_path="a/b.d/..c")
FIELD = "config.mounts[0]"


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"image_sub_path": ""},
        {"image_sub_path": "./a//b/"},
        {"recursive_read_only": True},
        {"selinux_relabel": True},
        {"mount_options": ("noexec", "nodev")},
    ],
)
def test_what_may_be_asked_for(changes: dict[str, object]) -> None:
    volumes.check(config(mounts=(dataclasses.replace(GOOD, **changes),)))  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("changes", "field"),
    [
        ({"readonly": False}, "readonly"),
        ({"readonly": False, "recursive_read_only": True}, "recursive_read_only"),
        ({"propagation": MountPropagation.HOST_TO_CONTAINER}, "propagation"),
        ({"propagation": MountPropagation.BIDIRECTIONAL}, "propagation"),
        ({"image": ImageSpec()}, "image.image"),
        ({"mount_options": ("noexec", "rw")}, "mount_options[1]"),
    ],
)
def test_a_wrong_request_names_its_field(changes: dict[str, object], field: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        volumes.check(config(mounts=(dataclasses.replace(GOOD, **changes),)))  # type: ignore[arg-type]
    assert caught.value.field == f"{FIELD}.{field}"


@pytest.mark.parametrize("path", ["..", "../etc", "a/../../etc", "a/..", "/etc", "/", "a\0b"])
def test_a_sub_path_that_could_lead_out_is_refused(path: str) -> None:
    with pytest.raises(ImageVolumeMountFailed) as caught:
        volumes.check(config(mounts=(dataclasses.replace(GOOD, image_sub_path=path),)))
    assert str(caught.value).startswith(f"ImageVolumeMountFailed: {FIELD}.image_sub_path: {path!r}")


class Store:
    def find(self, reference: str) -> Image | None:
        if reference == "!":
            raise InvalidRequest("'!' is no reference", field="image")
        return IMAGE if reference == IMAGE.id else None

    def list(self) -> Sequence[Image]:
        return [IMAGE]


def test_each_mount_gets_its_image() -> None:
    host = MountRequest("/h", "/h")
    assert image_volumes.resolve(config(mounts=(host,)), Store()) == ()  # type: ignore[arg-type]
    assert image_volumes.resolve(config(mounts=(host, GOOD, host)), Store()) == ("", IMAGE.id, "")  # type: ignore[arg-type]


@pytest.mark.parametrize("name", ["absent", "!"])
def test_an_image_that_is_not_there_is_told_as_the_kubelet_wants_it(name: str) -> None:
    with pytest.raises(ImageVolumeMountFailed, match=rf"^ImageVolumeMountFailed: config\.mounts\[1\]\.image\.image: .*'{name}'"):
        image_volumes.resolve(config(mounts=(GOOD, dataclasses.replace(GOOD, image=ImageSpec(name)))), Store())  # type: ignore[arg-type]
