"""Manifests, configs, platforms: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from bridge.errors import BridgeError, CorruptData, Unsupported
from bridge.images.manifest import DOCKER_LIST, OCI_INDEX, OCI_MANIFEST, Descriptor, Index, Manifest, Platform, parse, parse_config
from bridge.images.platforms import choose

DIGEST = "sha256:" + "a" * 64
CONFIG = {"mediaType": "application/vnd.oci.image.config.v1+json", "digest": DIGEST, "size": 7}
LAYER = {"mediaType": "application/vnd.oci.image.layer.v1.tar+gzip", "digest": DIGEST, "size": 9}
EMPTY = {**CONFIG, "mediaType": "application/vnd.oci.empty.v1+json"}


def document(**changes: object) -> bytes:
    fields = {"schemaVersion": 2, "mediaType": OCI_MANIFEST, "config": CONFIG, "layers": [LAYER], **changes}
    return json.dumps({key: value for key, value in fields.items() if value is not None}).encode()


def test_a_manifest_of_either_family() -> None:
    parsed = parse(document())
    assert isinstance(parsed, Manifest)
    assert (parsed.config.size, parsed.layers[0].digest) == (7, DIGEST)
    docker = {**LAYER, "mediaType": "application/vnd.docker.image.rootfs.diff.tar.gzip"}
    assert isinstance(parse(document(mediaType="application/vnd.docker.distribution.manifest.v2+json", layers=[docker])), Manifest)
    assert isinstance(parse(document(artifactType="a/signed", config={**CONFIG, "mediaType": "of/an.old.tool"})), Manifest)
    assert isinstance(parse(document(mediaType=None), OCI_MANIFEST + "; charset=utf-8"), Manifest)


FILE = {**LAYER, "mediaType": "x/y"}
TITLED = {**LAYER, "annotations": {"org.opencontainers.image.title": "a.txt"}}


@pytest.mark.parametrize(
    ("changes", "kind"),
    [
        ({"artifactType": "a/model", "config": EMPTY, "layers": [FILE]}, "a/model"),
        ({"artifactType": "a/model", "config": EMPTY, "layers": []}, "a/model"),
        ({"config": EMPTY}, "application/vnd.oci.empty.v1+json"),
        ({"config": {**CONFIG, "mediaType": "a/config"}, "layers": [FILE]}, "a/config"),
        ({"config": {**CONFIG, "mediaType": "unknown/config"}, "layers": [TITLED]}, "unknown/config"),
        ({"artifactType": "a/model", "layers": [LAYER, FILE]}, "a/model"),
        ({"config": {**CONFIG, "mediaType": ""}, "layers": [FILE]}, "unknown"),
        ({"artifactType": "a/signed"}, ""),
        ({"config": {**CONFIG, "mediaType": "of/an.old.tool"}}, ""),
        ({"layers": [TITLED]}, ""),
    ],
)  # fmt: skip
def test_what_is_an_artifact_and_what_an_image(changes: dict[str, object], kind: str) -> None:
    parsed = parse(document(**changes))
    assert isinstance(parsed, Manifest)
    assert parsed.artifact == kind


@pytest.mark.parametrize("kind", [OCI_INDEX, DOCKER_LIST])
def test_an_index(kind: str) -> None:
    entry = {**CONFIG, "platform": {"os": "linux", "architecture": "arm", "variant": "v7"}}
    parsed = parse(json.dumps({"schemaVersion": 2, "mediaType": kind, "manifests": [entry]}).encode())
    assert isinstance(parsed, Index)
    assert parsed.manifests[0].platform == Platform("linux", "arm", "v7")


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        (b"{", CorruptData, "not JSON"),
        (b"[]", CorruptData, "not a JSON object"),
        (b"\xff", CorruptData, "not JSON"),
        (document(schemaVersion=1), Unsupported, "schema 1"),
        (document(mediaType="application/vnd.docker.distribution.manifest.v1+prettyjws"), Unsupported, "schema 1"),
        (document(schemaVersion=3), CorruptData, "schemaVersion"),
        (document(manifests=[]), CorruptData, "ambiguous"),
        (document(layers=7), CorruptData, "manifest.layers is not"),
        (document(layers=[LAYER] * 128), CorruptData, "128 layers"),
        (document(layers=[{**LAYER, "digest": "sha256:../../etc"}]), CorruptData, r"layers\[0\].digest"),
        (document(layers=[{**LAYER, "size": -1}]), CorruptData, "size"),
        (document(layers=[{**LAYER, "size": True}]), CorruptData, "size"),
        (document(layers=[{**LAYER, "mediaType": "text/html"}]), Unsupported, "text/html"),
        (document(artifactType="a b", config=EMPTY), CorruptData, "'a b' is no media type"),
        (document(artifactType="a/" + "b" * 300, config=EMPTY), CorruptData, "is no media type"),
        (document(config=None), CorruptData, "manifest.config"),
        (document(mediaType="application/x", config=None), Unsupported, "no image"),
    ],
)
def test_refusals(data: bytes, error: type[BridgeError], words: str) -> None:
    with pytest.raises(error, match=words):
        parse(data)


def test_a_config() -> None:
    data = {
        "architecture": "amd64",
        "os": "linux",
        "rootfs": {"type": "layers", "diff_ids": [DIGEST]},
        "config": {"User": "u", "Env": ["A=b"], "Cmd": ["c"], "Entrypoint": None, "Volumes": {"/v": {}}, "Labels": None, "StopSignal": "9"},
    }
    config = parse_config(json.dumps(data).encode())
    assert (config.run.user, config.run.cmd, config.run.entrypoint, config.run.volumes) == ("u", ("c",), (), ("/v",))
    for broken in ({"rootfs": None}, {"rootfs": {"diff_ids": ["x"]}}, {"config": {"Env": [1]}}, {"config": {"User": 7}}, {"config": [1]}):
        with pytest.raises(CorruptData):
            parse_config(json.dumps({**data, **broken}).encode())


def offers(*names: str) -> Index:
    platforms = [Platform(*name.split("/")) for name in names]
    return Index(tuple(Descriptor("", f"{number}", 0, platform) for number, platform in enumerate(platforms)))


@pytest.mark.parametrize(
    ("wanted", "there", "chosen"),
    [
        ("linux/amd64", ["linux/arm64", "linux/amd64"], "1"),
        ("linux/amd64", ["windows/amd64", "linux/amd64", "linux/amd64"], "1"),
        ("linux/amd64", ["linux/amd64/v3", "linux/amd64"], "1"),
        ("linux/arm/v7", ["linux/arm/v5", "linux/arm/v6", "linux/arm/v8"], "1"),
        ("linux/arm/v7", ["linux/arm"], "0"),
        ("linux/arm64/v8", ["linux/arm64"], "0"),
        ("linux/riscv64", ["linux/riscv64"], "0"),
    ],
)
def test_the_best_platform(wanted: str, there: list[str], chosen: str) -> None:
    assert choose(offers(*there), Platform(*wanted.split("/"))).digest == chosen


def test_no_platform_lists_those_that_exist_and_ignores_attestations() -> None:
    attestation = Descriptor("", "x", 0, Platform("unknown", "unknown"), {"vnd.docker.reference.type": "attestation-manifest"})
    index = Index((*offers("linux/s390x", "linux/arm/v7").manifests, attestation))
    with pytest.raises(Unsupported, match=r"for linux/amd64; it has: linux/arm/v7, linux/s390x$"):
        choose(index, Platform("linux", "amd64"))


leaves = st.none() | st.booleans() | st.integers() | st.text(max_size=5) | st.just(DIGEST) | st.just(2)
json_values = leaves | st.lists(leaves | st.lists(leaves, max_size=2), max_size=3)
FIELDS = st.sampled_from(["schemaVersion", "mediaType", "config", "layers", "manifests", "rootfs"])


@settings(deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(st.dictionaries(FIELDS, json_values))
def test_any_json_object_is_parsed_or_refused(fields: dict[str, object]) -> None:
    data = json.dumps(fields).encode()
    for parser in (parse, parse_config):
        try:
            parser(data)
        except BridgeError:
            continue
