"""Image references: normalisation, grammar, ids."""

from __future__ import annotations

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import InvalidRequest
from bridge.images import reference

DIGEST = "sha256:" + "a" * 64


@pytest.mark.parametrize(
    ("text", "normal"),
    [
        ("busybox", "docker.io/library/busybox:latest"),
        ("busybox:1.36", "docker.io/library/busybox:1.36"),
        ("user/app", "docker.io/user/app:latest"),
        ("docker.io/busybox", "docker.io/library/busybox:latest"),
        ("index.docker.io/a/b:c", "docker.io/a/b:c"),
        ("localhost/app", "localhost/app:latest"),
        ("localhost:5000/app:v1", "localhost:5000/app:v1"),
        ("127.0.0.1:5000/a/b/c", "127.0.0.1:5000/a/b/c:latest"),
        ("[::1]:5000/app", "[::1]:5000/app:latest"),
        ("registry.k8s.io/pause:3.9", "registry.k8s.io/pause:3.9"),
        ("Upper/app", "Upper/app:latest"),
        (f"busybox@{DIGEST}", f"docker.io/library/busybox@{DIGEST}"),
        (f"q.io/a:t@{DIGEST}", f"q.io/a:t@{DIGEST}"),
        ("a__b/c-d/e--f.g", "docker.io/a__b/c-d/e--f.g:latest"),
    ],
)
def test_normal_form(text: str, normal: str) -> None:
    assert str(reference.parse(text)) == normal
    assert reference.parse(normal) == reference.parse(text)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "empty"),
        ("http://a.io/b", "scheme"),
        ("a b", "blank"),
        ("busy\nbox", "blank"),
        ("busybox:", "not a tag"),
        ("busybox:-x", "not a tag"),
        ("busybox:" + "t" * 129, "not a tag"),
        ("busybox@sha256:abc", "not a digest"),
        ("busybox@md5:" + "a" * 32, "not a digest"),
        ("a.io/App", "lower-case"),
        ("a.io//b", "not a part"),
        ("a.io/", "not a part"),
        ("a.io/../b", "not a part"),
        ("-a.io/b", "not a registry host"),
        ("a.io:port/b", "not a registry host"),
        ("a.io/" + "x" * 260, "longer than 255"),
    ],
)
def test_errors_say_what_is_wrong(text: str, words: str) -> None:
    with pytest.raises(InvalidRequest, match=words) as caught:
        reference.parse(text)
    assert caught.value.field == "image"


def test_canonical_form_drops_the_tag_beside_a_digest() -> None:
    assert str(reference.parse(f"q.io/a:t@{DIGEST}").canonical()) == f"q.io/a@{DIGEST}"
    assert str(reference.parse("q.io/a:t").canonical()) == "q.io/a:t"


def test_ids() -> None:
    assert reference.is_id("a" * 64)
    assert reference.is_id(DIGEST)
    assert not reference.is_id("a" * 63)
    assert reference.id_prefix("sha256:abc") == reference.id_prefix("abc") == "abc"
    assert reference.id_prefix("ab") is None
    assert reference.id_prefix("busybox") is None


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.text(max_size=80))
def test_any_text_is_a_reference_or_refused_and_normal_forms_are_stable(text: str) -> None:
    try:
        parsed = reference.parse(text)
    except InvalidRequest:
        return
    assert reference.parse(str(parsed)) == parsed
