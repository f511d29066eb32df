"""registries.d, by the examples and rules of containers-registries.d(5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.images import reference, registries_d

MANUAL = """
docker:
  registry.example.com:
    lookaside: https://registry-lookaside.example.com
  registry.example.com/mydepartment:
    lookaside: https://lookaside.mydepartment.example.com
    lookaside-staging: file:///mnt/mydepartment/lookaside-staging
  registry.example.com/mydepartment/myproject:mybranch:
    sigstore: http://localhost:4242/lookaside
  signed.example.com:
    use-sigstore-attachments: true
  signed.example.com/not:
    use-sigstore-attachments: false
"""


def write(directory: Path, **files: str) -> registries_d.RegistriesD:
    for name, text in files.items():
        (directory / f"{name}.yaml").write_text(text)
    return registries_d.load(directory)


def test_the_narrowest_section_that_says_something(tmp_path: Path) -> None:
    found = write(tmp_path, a=MANUAL, b="default-docker:\n  lookaside: file:///mnt/common", c="")
    wanted = {
        "registry.example.com/other:1": "https://registry-lookaside.example.com",
        "registry.example.com/mydepartment/other:1": "https://lookaside.mydepartment.example.com",
        "registry.example.com/mydepartment/myproject:mybranch": "http://localhost:4242/lookaside",
        "elsewhere.example.com/a": "file:///mnt/common",
        "signed.example.com/a": "file:///mnt/common",
    }
    assert {name: found.lookaside(reference.parse(name)) for name in wanted} == wanted
    asked = {name: found.attachments(reference.parse(name)) for name in ("signed.example.com/a", "signed.example.com/not/a", "busybox")}
    assert list(asked.values()) == [True, False, False]


def test_nothing_is_configured(tmp_path: Path) -> None:
    for found in (registries_d.load(None), registries_d.load(tmp_path / "absent")):
        assert found.lookaside(reference.parse("busybox")) == "file:///var/lib/containers/sigstore"
        assert not found.attachments(reference.parse("busybox"))


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("a: [", "a.yaml: while parsing"),
        ("[]", "a.yaml: must be a mapping"),
        ("docker: []", "a.yaml: docker: must be a mapping"),
        ("docker: {h.example: 1}", r"docker\['h.example'\]: must be a mapping"),
        ("docker: {h.example: {lookaside: 1}}", "lookaside: must be a URL"),
        ("docker: {h.example: {lookaside: ftp://x/y}}", "'ftp://x/y' must be a http, https or file URL"),
        ("docker: {h.example: {lookaside: 'file://host/y'}}", "must be a http, https or file URL"),
        ("default-docker: {use-sigstore-attachments: 1}", "default-docker.use-sigstore-attachments: must be true or false"),
    ],
)
def test_mistakes_are_named(tmp_path: Path, text: str, why: str) -> None:
    with pytest.raises(ConfigError, match=why):
        write(tmp_path, a=text)


def test_one_scope_in_two_files(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"b.yaml: docker.io is defined in .*a.yaml as well"):
        write(tmp_path, a="docker: {docker.io: {}}", b="docker: {docker.io: {}}")
    (tmp_path / "b.yaml").write_text("default-docker: {}")
    with pytest.raises(ConfigError, match=r"c.yaml: default-docker is defined in .*b.yaml as well"):
        write(tmp_path, c="default-docker: {}")
