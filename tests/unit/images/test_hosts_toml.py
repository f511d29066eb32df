"""hosts.toml by containerd's documentation, and Docker's directories of certificates."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.images import hosts_toml, reference
from bridge.images.places import Routes, TlsFiles


def routes(text: str, image: str = "docker.io/library/busybox") -> Routes:
    return hosts_toml.parse(text, Path("/certs.d/docker.io/hosts.toml"), reference.parse(image))


FULL = """
server = "https://registry-1.docker.io"
ca = "own.pem"

[host."https://mirror.example:5000"]
  capabilities = ["pull", "resolve"]
  ca = ["a.pem", "/etc/b.pem"]
  client = [["c.crt", "c.key"]]
  skip_verify = true
  [host."https://mirror.example:5000".header]
    x-who = ["a", "b"]

[host."http://cache.example/registry/v2"]
  capabilities = ["pull"]
  override_path = true

[host."https://pushing.example"]
  capabilities = ["push"]
"""


def test_hosts_in_their_order_and_the_server_last() -> None:
    mirror, cache, own = routes(FULL).places
    assert (mirror.api, mirror.insecure, mirror.resolves, mirror.namespace) == ("https://mirror.example:5000/v2", True, True, "docker.io")
    assert mirror.tls == TlsFiles(
        (Path("/certs.d/docker.io/a.pem"), Path("/etc/b.pem")), ((Path("/certs.d/docker.io/c.crt"), Path("/certs.d/docker.io/c.key")),)
    )
    assert mirror.headers == {"x-who": "a, b"}
    assert (cache.api, cache.resolves, cache.registry) == ("http://cache.example/registry/v2", False, False)
    assert (own.api, own.registry, own.namespace, own.tls.authorities) == (
        "https://registry-1.docker.io/v2",
        True,
        "",
        (Path("/certs.d/docker.io/own.pem"),),
    )


def test_without_a_server_the_registry_itself_comes_last() -> None:
    found = routes('[host."https://m.example"]\n', "q.io/a").places
    assert [place.api for place in found] == ["https://m.example/v2", "https://q.io/v2"]


def test_override_path_is_the_whole_root() -> None:
    (first, _) = routes('[host."https://m.example/a/b"]\noverride_path = true\n', "q.io/a").places
    assert first.api == "https://m.example/a/b"


def test_the_directory_of_a_host(tmp_path: Path) -> None:
    image = reference.parse("q.io:5000/a")
    assert hosts_toml.find(tmp_path, image) is None
    (tmp_path / "_default").mkdir()
    (tmp_path / "_default" / "hosts.toml").write_text('[host."https://everything.example"]\n')
    found = hosts_toml.find(tmp_path, image)
    assert found is not None
    assert found.places[0].host == "everything.example"
    (tmp_path / "q.io_5000_").mkdir()
    (tmp_path / "q.io_5000_" / "ca.crt").write_text("")
    found = hosts_toml.find(tmp_path, image)
    assert found is not None
    assert [(place.host, place.tls.authorities) for place in found.places] == [("q.io:5000", (tmp_path / "q.io_5000_" / "ca.crt",))]


def test_certificates_of_a_directory(tmp_path: Path) -> None:
    assert not hosts_toml.certificates(tmp_path / "absent")
    for name in ("ca.crt", "client.cert", "client.key", "README"):
        (tmp_path / name).touch()
    assert hosts_toml.certificates(tmp_path) == TlsFiles((tmp_path / "ca.crt",), ((tmp_path / "client.cert", tmp_path / "client.key"),))
    (tmp_path / "client.key").unlink()
    with pytest.raises(ConfigError, match=r"client\.key is missing"):
        hosts_toml.certificates(tmp_path)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("host = 7", "host"),
        ("server = 7", "server"),
        ('[host."https://m"]\ncapabilities = ["fly"]', "capabilities"),
        ('[host."ftp://m"]', "http:// or https://"),
        ('[host."https://m"]\nskip_verify = "no"', "skip_verify"),
        ('[host."https://m"]\nca = 7', "ca"),
        ('[host."https://m"]\nclient = [["a", "b", "c"]]', "client"),
        ('[host."https://m"]\nheader = 7', "header"),
        ('[host."https://m".header]\nx = "a\\nb"', "header.x"),
        ("nonsense", "hosts.toml"),
    ],
)
def test_mistakes_name_file_and_key(text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        routes(text)


def test_nothing_left_to_pull_from() -> None:
    assert "no host" in routes('capabilities = ["push"]\n').blocked
