"""CNI configuration files: what is accepted, what is refused and in which words."""

from __future__ import annotations

import json
from typing import Any

import pytest

from bridge.errors import ConfigError
from bridge.network.conf import VERSIONS, at_least, from_object, parse_network, parse_plugin

BRIDGE = {"type": "bridge", "bridge": "cni0", "x-unknown": {"deep": [1, 2.5, None, 12345678901234567890]}}
PORTMAP = {"type": "portmap", "capabilities": {"portMappings": True, "snat": False}}


def network(**changes: Any) -> dict[str, Any]:
    raw = {"cniVersion": "1.0.0", "name": "pods", "plugins": [BRIDGE, PORTMAP], **changes}
    return {key: value for key, value in raw.items() if value is not None}


def parse(raw: Any, source: str = "10-pods.conflist") -> Any:
    return parse_network(json.dumps(raw).encode(), source)


def test_a_list() -> None:
    conf = parse(network())
    assert (conf.name, conf.version, conf.versions, conf.source) == ("pods", "1.0.0", ("1.0.0",), "10-pods.conflist")
    assert [plugin.type for plugin in conf.plugins] == ["bridge", "portmap"]
    assert conf.plugins[0].body == BRIDGE
    assert conf.plugins[1].capabilities == {"portMappings"}
    assert conf.supports("portMappings")
    assert not conf.supports("snat")
    assert (conf.disable_check, conf.disable_gc, conf.inlined_only) == (False, False, False)


@pytest.mark.parametrize("source", ["10-one.conf", "10-one.json"])
def test_a_single_plugin_is_a_list_of_one(source: str) -> None:
    conf = parse({"cniVersion": "0.3.1", "name": "one", **BRIDGE}, source)
    assert conf.name == "one"
    assert [plugin.type for plugin in conf.plugins] == ["bridge"]
    assert conf.inlined_only


def test_it_survives_its_own_record() -> None:
    conf = parse(network(disableCheck=True, cniVersions=["0.4.0", "1.0.0"]))
    again = from_object(json.loads(json.dumps(conf.to_object())), "record")
    assert again.plugins == conf.plugins
    assert (again.name, again.version, again.disable_check) == ("pods", "1.0.0", True)


@pytest.mark.parametrize(
    ("changes", "versions"),
    [
        ({}, ("1.0.0",)),
        ({"cniVersion": None}, ("0.1.0",)),
        ({"cniVersion": ""}, ("0.1.0",)),
        ({"cniVersions": ["1.1.0", "0.4.0"]}, ("0.4.0", "1.0.0", "1.1.0")),
        ({"cniVersion": None, "cniVersions": ["0.3.1"]}, ("0.3.1",)),
        ({"cniVersion": "1.1.0", "cniVersions": ["9.0.0"]}, ("1.1.0",)),
    ],
)
def test_versions_that_both_sides_know(changes: dict[str, Any], versions: tuple[str, ...]) -> None:
    assert parse(network(**changes)).versions == versions


@pytest.mark.parametrize(("given", "flag"), [(True, True), (False, False), ("true", True), ("False", False)])
def test_flags_in_both_spellings(given: object, flag: bool) -> None:
    conf = parse(network(disableCheck=given, disableGC=given, loadOnlyInlinedPlugins=given))
    assert (conf.disable_check, conf.disable_gc, conf.inlined_only) == (flag, flag, flag)


@pytest.mark.parametrize(
    ("raw", "words"),
    [
        ([], "must be a JSON object"),
        (network(name=None), "name must be"),
        (network(name=7), "name must be"),
        (network(name="../x"), "name must be"),
        (network(name="-x"), "name must be"),
        (network(cniVersion="9.0.0"), r"cniVersion 9\.0\.0 is not a version we speak \(0\.1\.0.*1\.1\.0\)"),
        (network(cniVersion="one"), "cniVersion 'one' is not a version"),
        (network(cniVersion=1), "cniVersion 1 is not a version"),
        (network(cniVersions="1.0.0"), "cniVersions must be a list"),
        (network(plugins=[]), "plugins must be a list with at least one"),
        (network(plugins={}), "plugins must be a list"),
        (network(plugins=None, loadOnlyInlinedPlugins=True), "plugins is required"),
        (network(plugins=[BRIDGE, {}]), r"plugins\[1\]\.type is required"),
        (network(plugins=[BRIDGE, 5]), r"plugins\[1\] must be a JSON object"),
        (network(plugins=[{"type": "a/b"}]), r"plugins\[0\]\.type 'a/b' is not a file name"),
        (network(plugins=[{"type": ".."}]), "is not a file name"),
        (network(plugins=[{"type": "x", "capabilities": ["dns"]}]), r"plugins\[0\]\.capabilities must map"),
        (network(plugins=[{"type": "x", "capabilities": {"dns": 1}}]), "capabilities must map"),
        (network(disableCheck="perhaps"), "disableCheck must be true or false"),
    ],
)
def test_refusals_name_file_and_key(raw: Any, words: str) -> None:
    with pytest.raises(ConfigError, match=rf"^10-pods\.conflist: .*{words}"):
        parse(raw)


@pytest.mark.parametrize("data", [b"", b"{", b"\xff\xfe", b'{"name": NaN}', b"[" * 100_000, b'{"a": 1} x'])
def test_what_is_not_json(data: bytes) -> None:
    with pytest.raises(ConfigError, match=r"^a\.conflist: "):
        parse_network(data, "a.conflist")


def test_a_list_in_a_conf_file_says_how_to_name_it() -> None:
    with pytest.raises(ConfigError, match=r"suffix \.conflist"):
        parse(network(), "10-pods.conf")


def test_a_plugin_file() -> None:
    assert parse_plugin(b'{"type": "tuning"}', "pods/1.conf").type == "tuning"
    with pytest.raises(ConfigError, match=r"pods/1\.conf: type is required"):
        parse_plugin(b"{}", "pods/1.conf")


def test_version_order() -> None:
    assert at_least("1.1.0", "0.4.0")
    assert at_least("0.4.0", "0.4.0")
    assert not at_least("0.3.1", "0.4.0")
    assert list(VERSIONS) == sorted(VERSIONS, key=lambda v: [int(part) for part in v.split(".")])


@pytest.mark.parametrize("kind", ["../../../bin/sh", "/bin/sh", "..", "a/b", ".", "a\0b"])
def test_cve_2021_20206_a_plugins_type_is_a_name_and_no_path(kind: str) -> None:
    """A type with a path in it had any program of the host run as root."""
    with pytest.raises(ConfigError, match=r"plugins\[0\]\.type .* is not a file name"):
        parse(network(plugins=[{"type": kind}]))
