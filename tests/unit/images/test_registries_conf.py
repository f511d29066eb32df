"""registries.conf version 2, by the examples and rules of containers-registries.conf(5)."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.images import reference, registries_conf
from bridge.images.registries_conf import RegistriesConf, overlaid

DIGEST = "sha256:" + "a" * 64


def conf(*texts: str) -> RegistriesConf:
    found = RegistriesConf()
    for text in texts:
        found = overlaid(found, text, "test.conf")
    return found


def asked(text: str, image: str) -> list[str]:
    routes = conf(text).routes(reference.parse(image))
    assert routes is not None
    return [f"{place.api}/{place.name}" for place in routes.places]


MIRRORED = """
[[registry]]
prefix = "example.com/foo"
location = "internal.example/bar"
insecure = true
[[registry.mirror]]
location = "mirror.example/deep/bar"
insecure = true
[[registry.mirror]]
location = "digests.example/bar"
pull-from-mirror = "digest-only"
[[registry.mirror]]
location = "tags.example/bar"
pull-from-mirror = "tag-only"
"""


def test_the_matched_part_is_rewritten_and_the_registry_is_asked_last() -> None:
    assert asked(MIRRORED, "example.com/foo/image:1") == [
        "https://mirror.example/v2/deep/bar/image",
        "https://tags.example/v2/bar/image",
        "https://internal.example/v2/bar/image",
    ]
    assert asked(MIRRORED, f"example.com/foo/image@{DIGEST}") == [
        "https://mirror.example/v2/deep/bar/image",
        "https://digests.example/v2/bar/image",
        "https://internal.example/v2/bar/image",
    ]


def test_only_whole_components_match() -> None:
    assert conf(MIRRORED).routes(reference.parse("example.com/foobar/image")) is None
    assert conf(MIRRORED).routes(reference.parse("example.com/other")) is None
    assert asked(MIRRORED, "example.com/foo")[-1] == "https://internal.example/v2/bar"


def test_the_longest_prefix_counts() -> None:
    text = '[[registry]]\nlocation = "q.io"\nblocked = true\n[[registry]]\nlocation = "q.io/open"\n'
    blocked = conf(text).routes(reference.parse("q.io/team/image"))
    assert blocked is not None
    assert "q.io is blocked" in blocked.blocked
    assert asked(text, "q.io/open/image") == ["https://q.io/v2/open/image"]


def test_wildcards_stand_for_subdomains() -> None:
    text = '[[registry]]\nprefix = "*.example.com"\nlocation = "inner.example:5000/all"\n'
    assert asked(text, "a.b.example.com/team/image") == ["https://inner.example:5000/v2/all/team/image"]
    assert conf(text).routes(reference.parse("example.com/image")) is None
    plain = '[[registry]]\nprefix = "*.example.com"\ninsecure = true\n'
    routes = conf(plain).routes(reference.parse("a.example.com:5000/image"))
    assert routes is not None
    assert (routes.places[0].insecure, routes.places[0].registry, routes.places[0].host) == (True, True, "a.example.com:5000")


def test_only_the_registry_itself_is_marked_for_the_credentials() -> None:
    routes = conf(MIRRORED).routes(reference.parse("example.com/foo/image"))
    assert routes is not None
    assert [place.registry for place in routes.places] == [False, False, True]


def test_mirror_by_digest_only() -> None:
    text = '[[registry]]\nlocation = "q.io"\nmirror-by-digest-only = true\n[[registry.mirror]]\nlocation = "m.io"\n'
    assert asked(text, "q.io/a:1") == ["https://q.io/v2/a"]
    assert asked(text, f"q.io/a@{DIGEST}") == ["https://m.io/v2/a", "https://q.io/v2/a"]


def test_short_names() -> None:
    assert conf("").candidates("busybox:1") == []
    one = conf('unqualified-search-registries = ["a.io"]')
    assert one.candidates("busybox:1") == ["a.io/busybox:1"]
    several = 'unqualified-search-registries = ["a.io", "b.io"]\n'
    with pytest.raises(ConfigError, match=r"ambiguous.*a\.io, b\.io"):
        conf(several).candidates("busybox")
    assert conf(several + 'short-name-mode = "permissive"').candidates("t/x") == ["a.io/t/x", "b.io/t/x"]
    alias = conf(several, '[aliases]\nbusybox = "c.io/box"\ngone = ""')
    assert alias.candidates(f"busybox@{DIGEST}") == [f"c.io/box@{DIGEST}"]
    assert "gone" not in alias.aliases


def test_drop_ins_override_by_prefix_and_by_key(tmp_path: Path) -> None:
    main = tmp_path / "registries.conf"
    main.write_text('unqualified-search-registries = ["a.io"]\n[[registry]]\nlocation = "q.io"\nblocked = true\n')
    (tmp_path / "registries.conf.d").mkdir()
    (tmp_path / "registries.conf.d" / "50.conf").write_text('[[registry]]\nlocation = "q.io"\n')
    (tmp_path / "registries.conf.d" / "60.conf").write_text('unqualified-search-registries = ["z.io"]\n')
    (tmp_path / "registries.conf.d" / "ignored.txt").write_text("not toml")
    found = registries_conf.load(main)
    assert not found.entries["q.io"].blocked
    assert found.search == ("z.io",)
    assert registries_conf.load(tmp_path / "absent.conf") == RegistriesConf()


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("[registries.search]\nregistries = []", "version 1"),
        ("[[registry]]", "prefix or a location"),
        ('[[registry]]\nlocation = "https://q.io"', "without a scheme"),
        ('[[registry]]\nlocation = "q.io"\nblocked = "yes"', r"registry\[0\]: blocked"),
        ('[[registry]]\nlocation = "q.io"\n[[registry.mirror]]\n', r"mirror\[0\]: needs a location"),
        ('[[registry]]\nlocation = "q.io"\n[[registry.mirror]]\nlocation = "m"\npull-from-mirror = "never"', "never"),
        ('[[registry]]\nlocation = "*.q.io"', "wildcard"),
        ('short-name-mode = "loose"', "loose"),
        ("unqualified-search-registries = 7", "unqualified-search-registries"),
        ("[aliases]\nx = 7", "aliases"),
        ("= nonsense", "test.conf"),
    ],
)
def test_mistakes_are_named(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        conf(text)
