"""The registry client against a small registry of our own on loopback: redirects, tokens, TLS, busy answers, mirrors."""

from __future__ import annotations

import hashlib
import json
import shutil
import ssl
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from aiohttp import web

from bridge.errors import ConfigError, ImagePullFailed, RegistryUnavailable
from bridge.images import reference
from bridge.images.auth import Credentials
from bridge.images.manifest import Descriptor
from bridge.images.registry import RegistryClient
from bridge.images.settings import ImageSettings, Registry

MANIFEST = json.dumps({"schemaVersion": 2}).encode()
BLOB = b"content of a blob" * 1000
WANTED = Descriptor("application/octet-stream", f"sha256:{hashlib.sha256(BLOB).hexdigest()}", len(BLOB))
Answer = Callable[[web.Request], Awaitable[web.StreamResponse | None]]


class FakeRegistry:
    """Serves MANIFEST for every tag and BLOB for every digest, unless ``fault`` answers first; keeps what was asked."""

    def __init__(self) -> None:
        self.host = ""
        self.asked: list[web.Request] = []
        self.fault: Answer | None = None

    async def handle(self, request: web.Request) -> web.StreamResponse:
        self.asked.append(request)
        if self.fault is not None and (answer := await self.fault(request)) is not None:
            return answer
        body = BLOB if "/blobs/" in request.path else MANIFEST
        return web.Response(body=body, content_type="application/vnd.oci.image.manifest.v1+json")


@asynccontextmanager
async def serving(context: ssl.SSLContext | None = None, host: str = "127.0.0.1") -> AsyncIterator[FakeRegistry]:
    fake = FakeRegistry()
    runner = web.AppRunner(_app(fake))
    await runner.setup()
    try:
        site = web.TCPSite(runner, host, 0, ssl_context=context)
        await site.start()
        fake.host = f"{host}:{runner.addresses[0][1]}"
        yield fake
    finally:
        await runner.cleanup()


def _app(fake: FakeRegistry) -> web.Application:
    app = web.Application()
    app.router.add_route("*", "/{tail:.*}", fake.handle)
    return app


async def manifest(settings: ImageSettings, image: str, who: Credentials | None = None) -> bytes:
    async with RegistryClient(settings) as client:
        repository = await client.repository(reference.parse(image), who or Credentials())
        return (await repository.manifest("1")).data


async def blob(settings: ImageSettings, image: str, who: Credentials | None = None) -> bytes:
    async with RegistryClient(settings) as client:
        repository = await client.repository(reference.parse(image), who or Credentials())
        return b"".join([chunk async for chunk in repository.blob(WANTED)])


def basic_only(fake: FakeRegistry) -> None:
    async def ask(request: web.Request) -> web.StreamResponse | None:
        if "Authorization" in request.headers:
            return None
        return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})

    fake.fault = ask


async def test_a_redirect_takes_no_secret_to_another_origin(tmp_path: Path) -> None:
    async with serving() as own, serving() as store:

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})
            return web.Response(status=307, headers={"Location": f"http://{store.host}/elsewhere/blobs/x?signature=secret"})

        own.fault = redirect
        assert await blob(ImageSettings(tmp_path), f"{own.host}/a", Credentials("u", "p")) == BLOB
        assert [request.path for request in store.asked] == ["/elsewhere/blobs/x"]
        assert "Authorization" not in store.asked[0].headers


async def test_a_redirect_at_home_keeps_it(tmp_path: Path) -> None:
    async with serving() as own:

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            if "Authorization" not in request.headers:
                return web.Response(status=401, headers={"WWW-Authenticate": 'Basic realm="here"'})
            return None if request.path.startswith("/moved") else web.Response(status=302, headers={"Location": "/moved/blobs/x"})

        own.fault = redirect
        assert await blob(ImageSettings(tmp_path), f"{own.host}/a", Credentials("u", "p")) == BLOB
        assert own.asked[-1].path == "/moved/blobs/x"
        assert own.asked[-1].headers["Authorization"].startswith("Basic ")


@pytest.mark.parametrize(
    ("location", "words"),
    [("/v2/a/manifests/1", "for ever"), ("file:///etc/passwd", "file URL|no URL"), ("http://[broken", "no URL"), ("", "no URL|for ever")],
)
async def test_redirects_to_nowhere(tmp_path: Path, location: str, words: str) -> None:
    async with serving() as own:

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=301, headers={"Location": location})

        own.fault = redirect
        with pytest.raises(ImagePullFailed, match=words):
            await manifest(ImageSettings(tmp_path), f"{own.host}/a:1")
        assert len(own.asked) <= 7


async def test_stored_credentials_are_asked_for_where_the_request_has_none(tmp_path: Path) -> None:
    async with serving() as own:
        basic_only(own)
        file = tmp_path / "auth.json"
        file.write_text(json.dumps({"auths": {own.host: {"username": "stored", "password": "p"}}}))
        with pytest.raises(ImagePullFailed, match="401"):
            await manifest(ImageSettings(tmp_path), f"{own.host}/a:1")
        assert await manifest(ImageSettings(tmp_path, auth_files=(file,)), f"{own.host}/a:1") == MANIFEST
        assert own.asked[-1].headers["Authorization"] == Credentials("stored", "p").basic()
        assert await manifest(ImageSettings(tmp_path, auth_files=(file,)), f"{own.host}/a:1", Credentials("mine", "q")) == MANIFEST
        assert own.asked[-1].headers["Authorization"] == Credentials("mine", "q").basic()


async def test_a_mirror_gets_stored_credentials_but_never_the_requests(tmp_path: Path) -> None:
    async with serving() as mirror, serving() as own:
        basic_only(mirror)
        settings = ImageSettings(tmp_path, registries={own.host: Registry(mirrors=[f"http://{mirror.host}/cache"])})
        assert await manifest(settings, f"{own.host}/a:1", Credentials("u", "p")) == MANIFEST
        assert all("Authorization" not in request.headers for request in mirror.asked)
        assert own.asked


async def test_a_token_that_expires_amid_a_pull_is_renewed(tmp_path: Path) -> None:
    async with serving() as own:
        given: list[str] = []

        async def tokens(request: web.Request) -> web.StreamResponse | None:
            if request.path == "/token":
                given.append(f"t{len(given)}")
                assert request.query["scope"] == "repository:a:pull"
                return web.json_response({"token": given[-1]})
            if given and request.headers.get("Authorization") == f"Bearer {given[-1]}" and len(own.asked) % 4:
                return None
            challenge = f'Bearer realm="http://{own.host}/token",service="s",scope="repository:a:pull"'
            return web.Response(status=401, headers={"WWW-Authenticate": challenge})

        own.fault = tokens
        async with RegistryClient(ImageSettings(tmp_path)) as client:
            repository = await client.repository(reference.parse(f"{own.host}/a:1"), Credentials())
            for _ in range(4):
                assert (await repository.manifest("1")).data == MANIFEST
        assert len(given) > 1


@pytest.mark.parametrize("status", [429, 503])
async def test_a_busy_registry_is_asked_again_when_it_says(tmp_path: Path, status: int) -> None:
    async with serving() as own:

        async def busy(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=status, headers={"Retry-After": "0"}) if len(own.asked) < 3 else None

        own.fault = busy
        assert await manifest(ImageSettings(tmp_path), f"{own.host}/a:1") == MANIFEST

        own.asked.clear()
        settings = ImageSettings(tmp_path, registries={own.host: Registry(mirrors=[f"http://{own.host}"])})
        assert await blob(settings, f"{own.host}/a:1") == BLOB
        assert len(own.asked) == 3


async def test_a_registry_that_wants_to_be_left_alone_for_long(tmp_path: Path) -> None:
    async with serving() as own:

        async def busy(request: web.Request) -> web.StreamResponse | None:
            return web.json_response(
                {"errors": [{"code": "TOOMANYREQUESTS", "message": "slow down"}]}, status=429, headers={"Retry-After": "3600"}
            )

        own.fault = busy
        with pytest.raises(RegistryUnavailable, match=r"429.*TOOMANYREQUESTS: slow down"):
            await manifest(ImageSettings(tmp_path), f"{own.host}/a:1")
        assert len(own.asked) <= 2  # https, which is not spoken here, and http


async def test_a_busy_mirror_is_passed_over_at_once(tmp_path: Path) -> None:
    async with serving() as mirror, serving() as own:

        async def busy(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=503, headers={"Retry-After": "30"})

        mirror.fault = busy
        settings = ImageSettings(tmp_path, registries={own.host: Registry(mirrors=[f"http://{mirror.host}"])})
        assert await manifest(settings, f"{own.host}/a:1") == MANIFEST
        assert len(mirror.asked) == 1


async def test_hosts_toml_with_namespace_headers_and_a_mirror_that_may_not_resolve(tmp_path: Path) -> None:
    async with serving() as mirror, serving() as own:
        directory = tmp_path / "certs.d" / own.host
        directory.mkdir(parents=True)
        (directory / "hosts.toml").write_text(
            f'server = "http://{own.host}"\n[host."http://{mirror.host}/deep/v2"]\ncapabilities = ["pull"]\noverride_path = true\n'
            f'[host."http://{mirror.host}/deep/v2".header]\nx-who = "us"\n'
        )
        settings = ImageSettings(tmp_path, hosts_dirs=(tmp_path / "certs.d",))
        assert await manifest(settings, f"{own.host}/a:1") == MANIFEST
        assert not mirror.asked
        assert await blob(settings, f"{own.host}/a:1") == BLOB
        (asked,) = mirror.asked
        assert (asked.path, asked.query["ns"], asked.headers["x-who"]) == (f"/deep/v2/a/blobs/{WANTED.digest}", own.host, "us")


# TLS


def openssl(directory: Path, *arguments: str) -> None:
    subprocess.run(["openssl", *arguments], cwd=directory, check=True, capture_output=True)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """ca.pem, a server certificate for 127.0.0.1, a client certificate."""
    if shutil.which("openssl") is None:
        pytest.skip("needs the openssl program to make certificates")
    made = tmp_path_factory.mktemp("pki")
    openssl(
        made, "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", "ca.key", "-out", "ca.pem", "-subj", "/CN=test ca", "-days", "2"
    )
    for name, extension in (("server", "subjectAltName=IP:127.0.0.1"), ("client", "extendedKeyUsage=clientAuth")):
        openssl(made, "req", "-newkey", "ed25519", "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.csr", "-subj", f"/CN={name}")
        (made / f"{name}.ext").write_text(extension)
        sign = ["x509", "-req", "-in", f"{name}.csr", "-CA", "ca.pem", "-CAkey", "ca.key", "-CAcreateserial", "-days", "2"]
        openssl(made, *sign, "-extfile", f"{name}.ext", "-out", f"{name}.pem")
    return made


def server_context(pki: Path, *, ask_client: bool = False) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH, cafile=str(pki / "ca.pem"))
    context.load_cert_chain(pki / "server.pem", pki / "server.key")
    if ask_client:
        context.verify_mode = ssl.CERT_REQUIRED
    return context


async def test_an_authority_of_ones_own(tmp_path: Path, pki: Path) -> None:
    async with serving(server_context(pki)) as own:
        with pytest.raises(RegistryUnavailable, match="certificate"):
            await manifest(ImageSettings(tmp_path, registries={own.host: Registry()}), f"{own.host}/a:1")
        settings = ImageSettings(tmp_path, registries={own.host: Registry(authorities=[pki / "ca.pem"])})
        assert await manifest(settings, f"{own.host}/a:1") == MANIFEST
        directory = tmp_path / "certs.d" / own.host
        directory.mkdir(parents=True)
        shutil.copy(pki / "ca.pem", directory / "ca.crt")
        assert await manifest(ImageSettings(tmp_path, certificate_dirs=(tmp_path / "certs.d",)), f"{own.host}/a:1") == MANIFEST
        assert await manifest(ImageSettings(tmp_path, registries={own.host: Registry(insecure=True)}), f"{own.host}/a:1") == MANIFEST


async def test_a_client_certificate_is_shown_to_the_registry_and_not_along_a_redirect(tmp_path: Path, pki: Path) -> None:
    async with serving(server_context(pki, ask_client=True)) as own:
        without = ImageSettings(tmp_path, registries={own.host: Registry(authorities=[pki / "ca.pem"])})
        with pytest.raises(RegistryUnavailable):
            await manifest(without, f"{own.host}/a:1")
        client = Registry(authorities=[pki / "ca.pem"], client=(pki / "client.pem", pki / "client.key"))
        settings = ImageSettings(tmp_path, registries={own.host: client})
        assert await manifest(settings, f"{own.host}/a:1") == MANIFEST
        async with serving(server_context(pki, ask_client=True)) as store:

            async def redirect(request: web.Request) -> web.StreamResponse | None:
                return web.Response(status=307, headers={"Location": f"https://{store.host}/blobs/x"})

            own.fault = redirect
            with pytest.raises(RegistryUnavailable):
                await manifest(settings, f"{own.host}/a:1")
            assert store.asked == []


async def test_a_redirect_may_not_give_up_tls(tmp_path: Path, pki: Path) -> None:
    async with serving(server_context(pki)) as own, serving() as plain:

        async def redirect(request: web.Request) -> web.StreamResponse | None:
            return web.Response(status=307, headers={"Location": f"http://{plain.host}/blobs/x"})

        own.fault = redirect
        settings = ImageSettings(tmp_path, registries={own.host: Registry(authorities=[pki / "ca.pem"])})
        with pytest.raises(ImagePullFailed, match="from https to http"):
            await manifest(settings, f"{own.host}/a:1")
        assert plain.asked == []


async def test_files_that_are_no_certificates_are_named(tmp_path: Path) -> None:
    bad = tmp_path / "bad.pem"
    for client, words in (((bad, bad), "bad.pem"), (None, "bad.pem")):
        settings = ImageSettings(tmp_path, registries={"q.io": Registry(authorities=[] if client else [bad], client=client)})
        with pytest.raises(ConfigError, match=words):
            await manifest(settings, "q.io/a:1")
    bad.write_text("nonsense")
    with pytest.raises(ConfigError, match=r"bad\.pem: is no PEM"):
        await manifest(ImageSettings(tmp_path, registries={"q.io": Registry(authorities=[bad])}), "q.io/a:1")
