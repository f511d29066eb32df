"""Which places a reference leads to, which endpoints they become, and when to come back to a busy registry."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import ConfigError, ImagePullFailed, RegistryUnavailable
from bridge.images import endpoints, reference, routing
from bridge.images.auth import Credentials
from bridge.images.settings import ImageSettings, Registry
from bridge.images.short_names import ShortNames
from bridge.images.transfer import Busy, pause, retry_after


async def bases(domain: str, registry: Registry | None = None, plain: set[str] | None = None) -> list[str]:
    settings = ImageSettings(Path("/x"), registries={domain: registry} if registry else {})
    routes = await routing.route(reference.parse(f"{domain}/team/image"), settings)
    return [endpoint.url("tags/list") for endpoint in endpoints.of(routes.places, Credentials("u", "p"), plain or set())]


async def test_endpoints() -> None:
    tail = "v2/team/image/tags/list"
    assert await bases("docker.io") == [f"https://registry-1.docker.io/{tail}"]
    assert await bases("q.io") == [f"https://q.io/{tail}"]
    assert await bases("q.io", Registry(insecure=True)) == [f"https://q.io/{tail}", f"http://q.io/{tail}"]
    assert await bases("127.0.0.1:5000") == [f"https://127.0.0.1:5000/{tail}", f"http://127.0.0.1:5000/{tail}"]
    assert await bases("localhost:1", plain={"localhost:1"}) == [f"http://localhost:1/{tail}", f"https://localhost:1/{tail}"]
    mirrored = await bases("q.io", Registry(mirrors=["http://m:5/p/", "n.io"]))
    assert mirrored == [f"http://m:5/p/{tail}", f"https://n.io/{tail}", f"https://q.io/{tail}"]
    for bad in ("ftp://x", "http://", "http://u:p@x", "http://x/?q"):
        with pytest.raises(ConfigError) as caught:
            await bases("q.io", Registry(mirrors=[bad]))
        assert "u:p" not in str(caught.value)


async def test_credentials_go_to_the_registry_only() -> None:
    settings = ImageSettings(Path("/x"), registries={"q.io": Registry(mirrors=["http://m"])})
    routes = await routing.route(reference.parse("q.io/a"), settings)
    mirror, own = endpoints.of(routes.places, Credentials("u", "p"), set())
    assert not mirror.credentials
    assert own.credentials.username == "u"


async def test_our_own_entry_then_hosts_toml_then_registries_conf(tmp_path: Path) -> None:
    conf, hosts = tmp_path / "registries.conf", tmp_path / "certs.d"
    conf.write_text('[[registry]]\nlocation = "q.io"\nblocked = true\n')
    image = reference.parse("q.io/a")
    settings = ImageSettings(tmp_path, registries_conf=conf, hosts_dirs=(hosts,))
    with pytest.raises(ImagePullFailed, match=r"q\.io is blocked by registries\.conf"):
        await routing.route(image, settings)
    (hosts / "q.io").mkdir(parents=True)
    (hosts / "q.io" / "hosts.toml").write_text('[host."https://m.io"]\n')
    assert [place.host for place in (await routing.route(image, settings)).places] == ["m.io", "q.io"]
    ours = ImageSettings(tmp_path, registries={"q.io": Registry(mirrors=["o.io"])}, registries_conf=conf, hosts_dirs=(hosts,))
    assert [place.host for place in (await routing.route(image, ours)).places] == ["o.io", "q.io"]
    blocked = ImageSettings(tmp_path, registries={"q.io": Registry(blocked=True)})
    with pytest.raises(ImagePullFailed, match=r'images\.registries\."q\.io"\.blocked'):
        await routing.route(image, blocked)


async def test_a_broken_file_fails_the_pull(tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text("[[registry")
    with pytest.raises(ConfigError, match=r"registries\.conf"):
        await routing.route(reference.parse("q.io/a"), ImageSettings(tmp_path, registries_conf=conf))


async def test_certificates_by_host(tmp_path: Path) -> None:
    (tmp_path / "q.io").mkdir()
    (tmp_path / "q.io" / "ca.crt").touch()
    settings = ImageSettings(tmp_path, certificate_dirs=(tmp_path / "absent", tmp_path))
    (place,) = (await routing.route(reference.parse("q.io/a"), settings)).places
    assert place.tls.authorities == (tmp_path / "q.io" / "ca.crt",)


async def test_short_names(tmp_path: Path) -> None:
    conf = tmp_path / "registries.conf"
    conf.write_text('unqualified-search-registries = ["a.io"]\n[aliases]\nbox = "b.io/box"\n')
    names = ShortNames(conf)
    assert names.meanings("box") == ["box"]
    await names.load()
    assert list(names.meanings("box:1")) == ["b.io/box:1", "box:1"]
    assert list(await names.candidates("other")) == ["a.io/other"]
    assert list(await names.candidates("q.io/other")) == ["q.io/other"]
    identity = "sha256:" + "a" * 64
    assert list(await names.candidates(identity)) == [identity]
    conf.write_text('unqualified-search-registries = ["a.io", "b.io"]')
    with pytest.raises(ConfigError, match="ambiguous"):
        await names.candidates("other")
    assert list(names.meanings("other")) == ["other"]
    assert list(await ShortNames(None).candidates("other")) == ["other"]


def test_retry_after() -> None:
    assert retry_after("7") == 7
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now=946684790.0) == 9
    assert retry_after("Fri, 31 Dec 1999 23:59:59 GMT", now=946684800.0) == 0
    assert retry_after(None) is retry_after("soon") is retry_after("-1") is None


def test_pauses_grow_spread_and_obey() -> None:
    failure = RegistryUnavailable("x")
    first, later = [pause(failure, 1, 30) or 0 for _ in range(50)], [pause(failure, 9, 30) or 0 for _ in range(50)]
    assert max(first) < min(later) <= max(later) <= 7.5
    assert len(set(first)) > 10
    assert (pause(Busy("x", 20), 1, 30) or 0) >= 20
    assert pause(Busy("x", 31), 1, 30) is None
