"""Signature policies, by the examples and rules of containers-policy.json(5)."""

from __future__ import annotations

import base64
import json
from typing import Any

import pytest

from bridge.errors import CorruptData
from bridge.images import policy, reference, signed_identity
from bridge.images.policy import AcceptAnything, Keys, Policy, Reject, SignedBy, SigstoreSigned
from bridge.images.signed_identity import IdentityRule

DIGEST = "sha256:" + "a" * 64
ACCEPT: list[dict[str, Any]] = [{"type": "insecureAcceptAnything"}]
VENDOR = {"type": "signedBy", "keyType": "GPGKeys", "keyPath": "/path/to/vendor-pubkey.gpg"}
COSIGN = {"type": "sigstoreSigned", "keyPath": "/path/to/sigstore-pubkey.pub"}


def parsed(**scopes: Any) -> Policy:
    return policy.parse(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes}}))


def requirement(value: dict[str, Any]) -> policy.Requirement:
    return policy.parse(json.dumps({"default": [value]})).default[0]


def test_the_manuals_locked_down_system() -> None:
    docker = {
        "docker.io/openshift": ACCEPT,
        "docker.io/library/busybox": ACCEPT,
        "*.temporary-project.example.com": ACCEPT,
        "hostname:5000/myns/sigstore-signed-with-full-references": [COSIGN],
        "hostname:5000/myns/sigstore-signed-allows-malicious-tag-substitution": [{**COSIGN, "signedIdentity": {"type": "matchRepository"}}],
    }
    atomic = {
        "hostname:5000/vendor/product": [
            {**VENDOR, "signedIdentity": {"type": "exactRepository", "dockerRepository": "vendor-hostname.example/product/repository"}},
            VENDOR,
        ],
        "private-mirror:5000/vendor-mirror": [
            {
                **VENDOR,
                "signedIdentity": {
                    "type": "remapIdentity",
                    "prefix": "private-mirror:5000/vendor-mirror",
                    "signedPrefix": "vendor.example.com",
                },
            }
        ],
    }
    transports = {"docker": docker, "dir": {"": ACCEPT}, "atomic": atomic}
    found = policy.parse(json.dumps({"default": [{"type": "reject"}], "transports": transports}))

    def of(name: str) -> policy.Requirement:
        return found.requirements(reference.parse(name))[1][0]

    assert of("openshift/hello-openshift") == of("busybox:1.36") == of("a.temporary-project.example.com/x") == AcceptAnything()
    assert of("library/alpine") == of("temporary-project.example.com/x") == of("hostname:5000/vendor/product") == Reject()
    key = Keys("keyPath", ("/path/to/sigstore-pubkey.pub",))
    assert of("hostname:5000/myns/sigstore-signed-with-full-references:1") == SigstoreSigned(key, IdentityRule())
    tags = of("hostname:5000/myns/sigstore-signed-allows-malicious-tag-substitution:1")
    assert tags == SigstoreSigned(key, IdentityRule("matchRepository"))


@pytest.mark.parametrize(
    ("scopes", "image", "scope"),
    [
        (["host.example:5000/a/b:1", "host.example:5000/a/b"], "host.example:5000/a/b:1", "host.example:5000/a/b:1"),
        (["host.example:5000/a/b:1", "host.example:5000/a/b"], "host.example:5000/a/b:2", "host.example:5000/a/b"),
        ([f"host.example:5000/a/b@{DIGEST}"], f"host.example:5000/a/b@{DIGEST}", f"host.example:5000/a/b@{DIGEST}"),
        (["host.example:5000/a", "host.example:5000"], "host.example:5000/a/b", "host.example:5000/a"),
        (["host.example:5000", "*.example"], "host.example:5000/ab", "host.example:5000"),
        (["host.example", "*.example"], "host.example:5000/ab", "*.example"),
        (["*.example", "*.deep.example"], "very.deep.example/ab", "*.deep.example"),
        (["*.deep.example", ""], "deep.example/ab", ""),
        (["host.example/a"], "host.example/ab", None),
        (["busybox", "library"], "busybox", None),
        ([""], "busybox", ""),
    ],
)
def test_the_narrowest_scope(scopes: list[str], image: str, scope: str | None) -> None:
    found = parsed(**dict.fromkeys(scopes, ACCEPT)).requirements(reference.parse(image))
    assert found == (("default", (Reject(),)) if scope is None else (f"transports.docker[{scope!r}]", (AcceptAnything(),)))


def test_keys() -> None:
    data = base64.b64encode(b"a ring").decode()
    assert requirement({**VENDOR, "keyPath": "/k"}) == SignedBy(Keys("keyPath", ("/k",)), IdentityRule())
    several = {"type": "signedBy", "keyType": "GPGKeys", "keyPaths": ["/k", "/l"]}
    assert requirement(several) == SignedBy(Keys("keyPaths", ("/k", "/l")), IdentityRule())
    inline = {"type": "sigstoreSigned", "keyDatas": [data, data]}
    assert requirement(inline) == SigstoreSigned(Keys("keyDatas", data=(b"a ring", b"a ring")), IdentityRule())


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"type": "sigstoreSigned", "fulcio": {}}, r"default\[0\].fulcio: not supported"),
        ({**COSIGN, "rekorPublicKeyPath": "/r"}, "rekorPublicKeyPath: not supported"),
        ({"type": "sigstoreSigned", "pki": {}}, "pki: not supported"),
        ({**VENDOR, "keyType": "X509Certificates"}, "X509Certificates is not supported, only GPGKeys"),
        ({"type": "signedBaseLayer", "baseLayerIdentity": {"type": "matchExact"}}, "signedBaseLayer is not supported"),
    ],
)
def test_what_is_known_but_not_supported_refuses_its_images_only(value: dict[str, Any], why: str) -> None:
    found = requirement(value)
    assert isinstance(found, Reject)
    with pytest.raises(AssertionError, match=why):
        raise AssertionError(found.why)


@pytest.mark.parametrize(
    ("text", "why"),
    [
        ("", "it is not JSON"),
        ("[]", "it: must be an object"),
        ("{}", "default: missing"),
        ('{"default": [{"type": "reject"}], "default": [{"type": "reject"}]}', "'default' is given twice"),
        ('{"default": [{"type": "reject"}], "more": 1}', "more: unknown field"),
        ('{"default": []}', "default: must be an array of requirements, with at least one"),
        ('{"default": [{"type": "reject", "x": 1}]}', r"default\[0\].x: unknown field"),
        ('{"default": [{"type": "accept"}]}', r"default\[0\].type: 'accept' is no requirement"),
        ('{"default": [{}]}', r"default\[0\].type: must be a string"),
        ('{"default": ["reject"]}', r"default\[0\]: must be an object"),
        ('{"default": [{"type": "reject"}], "transports": []}', "transports: must be an object"),
        (
            '{"default": [{"type": "reject"}], "transports": {"docker": {"a.example": []}}}',
            r"transports.docker\['a.example'\]: must be an array",
        ),
        (
            '{"default": [{"type": "reject"}], "transports": {"dir": {"": [{"type": 1}]}}}',
            r"transports.dir\[''\]\[0\].type: must be a string",
        ),
    ],
)
def test_mistakes_are_named(text: str, why: str) -> None:
    with pytest.raises(CorruptData, match=why):
        policy.parse(text)


@pytest.mark.parametrize(
    ("value", "why"),
    [
        ({"type": "signedBy", "keyPath": "/k"}, r"default\[0\].keyType: missing"),
        ({**VENDOR, "keyType": "GPG"}, "keyType: 'GPG' is not GPGKeys"),
        ({**VENDOR, "keyData": "eA=="}, "exactly one of keyPath, keyPaths, keyData must be given, not keyPath and keyData"),
        ({"type": "sigstoreSigned"}, "exactly one of keyPath, keyPaths, keyData, keyDatas must be given, not none"),
        ({**VENDOR, "keyDatas": ["eA=="]}, "keyDatas: unknown field"),
        ({**VENDOR, "keyPath": "k.gpg"}, "keyPath: 'k.gpg' must be an absolute path"),
        ({"type": "sigstoreSigned", "keyPaths": []}, "keyPaths: must be an array of strings, with at least one"),
        ({"type": "sigstoreSigned", "keyData": "!"}, "keyData: it is not base64"),
        ({**VENDOR, "signedIdentity": {"type": "matchAny"}}, r"signedIdentity.type: 'matchAny' is no rule for identities"),
        ({**VENDOR, "signedIdentity": {"type": "matchExact", "x": 1}}, r"signedIdentity.x: unknown field"),
        ({**VENDOR, "signedIdentity": {"type": "exactReference", "dockerReference": "a.example/b"}}, "has neither tag nor digest"),
        ({**VENDOR, "signedIdentity": {"type": "exactReference", "dockerReference": "A b"}}, "dockerReference: 'A b' has a blank"),
        ({**VENDOR, "signedIdentity": {"type": "exactRepository"}}, "signedIdentity.dockerRepository: missing"),
        ({**VENDOR, "signedIdentity": {"type": "remapIdentity", "prefix": "a.example"}}, "signedIdentity.signedPrefix: missing"),
        (
            {**VENDOR, "signedIdentity": {"type": "remapIdentity", "prefix": "busybox", "signedPrefix": "a.example"}},
            "prefix: 'busybox' must be written in full, with its registry: docker.io/busybox",
        ),
        (
            {**VENDOR, "signedIdentity": {"type": "remapIdentity", "prefix": "a.example/b:1", "signedPrefix": "a.example"}},
            "prefix: 'a.example/b:1' is no registry host, namespace or repository",
        ),
    ],
)
def test_mistakes_in_requirements_are_named(value: dict[str, Any], why: str) -> None:
    with pytest.raises(CorruptData, match=why):
        requirement(value)


REMAP = {"type": "remapIdentity", "prefix": "mirror:5000/vendor", "signedPrefix": "vendor.example"}


@pytest.mark.parametrize(
    ("rule", "image", "claimed", "accepted"),
    [
        ({"type": "matchExact"}, "busybox:1", "docker.io/library/busybox:1", True),
        ({"type": "matchExact"}, "busybox:1", "busybox:2", False),
        ({"type": "matchExact"}, "busybox:latest", "busybox", False),
        ({"type": "matchExact"}, f"busybox@{DIGEST}", "busybox:1", False),
        ({"type": "matchExact"}, f"busybox@{DIGEST}", f"busybox@{DIGEST}", True),
        ({"type": "matchRepoDigestOrExact"}, "busybox:1", "busybox:1", True),
        ({"type": "matchRepoDigestOrExact"}, "busybox:1", f"busybox:1@{DIGEST}", False),
        ({"type": "matchRepoDigestOrExact"}, f"busybox@{DIGEST}", "busybox:1", True),
        ({"type": "matchRepoDigestOrExact"}, f"busybox@{DIGEST}", "busybox", False),
        ({"type": "matchRepoDigestOrExact"}, f"busybox@{DIGEST}", "alpine:1", False),
        ({"type": "matchRepository"}, "busybox:1", "busybox", True),
        ({"type": "matchRepository"}, "busybox:1", "alpine", False),
        ({"type": "matchRepository"}, "busybox:1", "not a name", False),
        ({"type": "exactReference", "dockerReference": "a.example/b:1"}, "busybox", "a.example/b:1", True),
        ({"type": "exactReference", "dockerReference": "a.example/b:1"}, "busybox", "a.example/b", False),
        ({"type": "exactRepository", "dockerRepository": "a.example/b"}, "busybox", "a.example/b:9", True),
        ({"type": "exactRepository", "dockerRepository": "a.example/b"}, "busybox", "busybox", False),
        (REMAP, "mirror:5000/vendor/a/b:1", "vendor.example/a/b:1", True),
        (REMAP, "mirror:5000/vendor/a/b:1", "mirror:5000/vendor/a/b:1", False),
        (REMAP, "mirror:5000/vendors/a:1", "mirror:5000/vendors/a:1", True),
        (REMAP, f"mirror:5000/vendor/a@{DIGEST}", "vendor.example/a:7", True),
    ],
)
def test_rules_for_identities(rule: dict[str, Any], image: str, claimed: str, accepted: bool) -> None:
    found = signed_identity.parse(rule, "signedIdentity")
    assert found.accepts(reference.parse(image).canonical(), claimed) is accepted
