"""Signature policies against a real registry, real GPG and real sigstore signatures; skopeo judges every case too."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import tempfile
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from typing import Any

import anyio
import pytest

from bridge.aio import Supervisor
from bridge.errors import RegistryUnavailable, SignatureValidationFailed
from bridge.images.manifest import Platform
from bridge.images.settings import ImageSettings
from bridge.images.store import ImageStore
from bridge.testing.images import Entry, Layout, tar
from tests.integration import signing_node
from tests.integration.registry_node import REGISTRY, free_port, push, registry
from tests.integration.signing_node import COSIGN, SIMPLE, Gpg, claim

pytestmark = [
    pytest.mark.root,
    pytest.mark.skipif(not REGISTRY.exists(), reason="needs Debian's docker-registry"),
    pytest.mark.skipif(not shutil.which("gpg") or not shutil.which("gpgv"), reason="needs Debian's gnupg and gpgv"),
]
MATCH_REPOSITORY = {"type": "matchRepository"}


class Bench:
    """One image ``name`` in its own repository, a policy, a signature store, and our and skopeo's judgement."""

    def __init__(self, directory: Path, host: str, repository: str) -> None:
        self.directory, self.host, self.repository = directory, host, repository
        self.name = f"{host}/{repository}:v1"
        self.digest = signing_node.head(host, repository, "v1")
        self.policy, self.registries_d, self.lookaside = directory / "policy.json", directory / "registries.d", directory / "lookaside"
        self.registries_d.mkdir()
        self.configure()

    def configure(self, lookaside: str = "", attachments: bool = True) -> None:
        """Where signatures are said to lie."""
        section = {"lookaside": lookaside or f"file://{self.lookaside}", "use-sigstore-attachments": attachments}
        (self.registries_d / "here.yaml").write_text(json.dumps({"docker": {self.host: section}}))

    def require(self, *requirements: dict[str, Any], default: str = "reject") -> None:
        """The policy for the image's repository."""
        scopes = {f"{self.host}/{self.repository}": list(requirements)}
        self.policy.write_text(json.dumps({"default": [{"type": default}], "transports": {"docker": scopes}}))

    def store_signature(self, message: bytes, number: int = 1, digest: str = "") -> None:
        directory = self.lookaside / f"{self.repository}@{(digest or self.digest).replace(':', '=')}"
        directory.mkdir(parents=True, exist_ok=True)
        (directory / f"signature-{number}").write_bytes(message)

    @asynccontextmanager
    async def store(self, **changes: Any) -> AsyncIterator[ImageStore]:
        base: dict[str, Any] = {"signature_policy": self.policy, "registries_d": self.registries_d, "idle_seconds": 2.0}
        settings = ImageSettings(self.directory / "store", platform=Platform("linux", "amd64"), **{**base, **changes})
        async with Supervisor() as supervisor, ImageStore.open(settings, supervisor) as store:
            yield store

    async def ours(self, name: str = "") -> str:
        """What we have against the image, "" for nothing; when refused, nothing of it is left."""
        async with self.store() as store:
            try:
                image = await store.pull(name or self.name)
            except SignatureValidationFailed as exc:
                assert store.list() == []
                assert os.listdir(self.directory / "store" / "layers") == os.listdir(self.directory / "store" / "tmp") == []
                return str(exc)
            await store.remove(image.id)
            return ""

    async def judged(self, name: str = "") -> str:
        """What we have against the image; skopeo must be of the same opinion."""
        ours = await self.ours(name)
        theirs = signing_node.skopeo(self.directory, self.policy, self.registries_d, name or self.name)
        if "sigstore disabled" not in theirs:  # as Debian 12 builds it; any other has an opinion
            assert bool(ours) == bool(theirs), f"ours: {ours or 'accepted'}\nskopeo: {theirs or 'accepted'}"
        assert not ours or ours.startswith("SignatureValidationFailed: ")
        return ours


@pytest.fixture(scope="module")
def layout() -> Iterator[Path]:
    with tempfile.TemporaryDirectory() as directory:
        with Layout(Path(directory) / "layout") as made:
            made.image("app", [tar([Entry("a", b"1")])], config={"Cmd": ["/a"]})
            made.image("other", [tar([Entry("b", b"2")])])
            made.index("index", [made.image(None, [tar([Entry(f"is-{n}", b"")])], architecture=n) for n in ("arm64", "amd64")])
        yield Path(directory) / "layout"


@pytest.fixture(scope="module")
def hub() -> Iterator[str]:
    with tempfile.TemporaryDirectory() as directory, registry(Path(directory) / "registry") as host:
        yield host


@pytest.fixture(scope="module")
def gpg() -> Iterator[Gpg]:
    with signing_node.gpg_home() as made:
        yield made


@pytest.fixture(scope="module")
def signer(gpg: Gpg) -> str:
    return gpg.key("signer", at=signing_node.days_ago(30))


@pytest.fixture(scope="module")
def stranger(gpg: Gpg) -> str:
    return gpg.key("stranger")


@pytest.fixture
async def bench(tmp_path: Path, hub: str, layout: Path, request: pytest.FixtureRequest) -> Bench:
    repository = f"case/{tmp_path.name.lower().replace('_', '-').strip('-')}"
    await push(layout, getattr(request, "param", "app"), hub, f"{repository}:v1")
    return Bench(tmp_path, hub, repository)


def signed_by(path: str, **changes: Any) -> dict[str, Any]:
    return {"type": "signedBy", "keyType": "GPGKeys", "keyPath": path, **changes}


# Simple signing


async def test_what_skopeo_signed_is_accepted(bench: Bench, gpg: Gpg, signer: str) -> None:
    environment = {**os.environ, "GNUPGHOME": str(gpg.home)}
    argv = ["skopeo", "--insecure-policy", "--registries.d", str(bench.registries_d), "copy", "-q", "--sign-by", signer]
    flags = ["--preserve-digests", "--src-tls-verify=false", "--dest-tls-verify=false"]
    await anyio.run_process([*argv, *flags, f"docker://{bench.name}", f"docker://{bench.name}"], env=environment)
    key = gpg.export(signer, bench.directory / "key.asc", armor=True)
    bench.require(signed_by(key))
    assert await bench.judged() == ""
    assert await bench.judged(f"{bench.host}/{bench.repository}@{bench.digest}") == ""
    bench.require(signed_by(key, signedIdentity={"type": "matchExact"}))
    assert await bench.judged() == ""
    assert "matchExact does not accept" in await bench.judged(f"{bench.host}/{bench.repository}@{bench.digest}")


async def test_an_image_without_a_signature_is_refused(bench: Bench, gpg: Gpg, signer: str, tmp_path: Path) -> None:
    bench.require(signed_by(gpg.export(signer, bench.directory / "key.gpg")))
    where = f"policy {bench.policy}: transports.docker['{bench.host}/{bench.repository}'][0]: signedBy a key in {tmp_path}/key.gpg"
    looked = f"file://{bench.lookaside}/{bench.repository}@{bench.digest.replace(':', '=')}/signature-1"
    rule = "for matchRepoDigestOrExact"
    assert await bench.judged() == (f"SignatureValidationFailed: {bench.name} ({bench.digest}): {where} {rule}: there is none at {looked}")


async def test_each_wrong_signature_is_refused_with_its_reason(bench: Bench, gpg: Gpg, signer: str, stranger: str) -> None:
    old = gpg.key("old", at="20200101T000000", life="1d")
    revoked = gpg.key("revoked")
    right = claim(SIMPLE, bench.name, bench.digest)
    by_revoked = gpg.sign(right, revoked)
    gpg.revoke(revoked)
    keys = [gpg.export(each, bench.directory / f"{number}.gpg") for number, each in enumerate((signer, old, revoked))]
    rule = {"type": "signedBy", "keyType": "GPGKeys", "keyData": signing_node.base64_of(*keys)}
    bench.require(rule)
    good, plain = gpg.sign(right, signer), gpg.sign(right, signer, options=["--compress-algo", "none"])
    nothing = "it is no signed OpenPGP message"
    wrong = [
        ("the key is none of the trusted ones", gpg.sign(right, stranger)),
        ("the key has expired", gpg.sign(right, old, at="20200101T010000")),
        ("the key has been revoked", by_revoked),
        ("the signature has expired", gpg.sign(right, signer, at=signing_node.days_ago(3), options=["--default-sig-expire", "1d"])),
        ("it is for the manifest sha256:000", gpg.sign(claim(SIMPLE, bench.name, "sha256:" + "0" * 64), signer)),
        ("it is for 'example.com/other:v1'", gpg.sign(claim(SIMPLE, "example.com/other:v1", bench.digest), signer)),
        ("critical.type: 'cosign container image signature'", gpg.sign(claim(COSIGN, bench.name, bench.digest), signer)),
        ("optional: must be an object", gpg.sign(claim(SIMPLE, bench.name, bench.digest, optional=None), signer)),
        ("more: unknown field", gpg.sign(claim(SIMPLE, bench.name, bench.digest, more=1), signer)),
        ("it is not JSON", gpg.sign(b"not json", signer)),
        ("the signature does not fit what is signed", plain.replace(b"container signature", b"container Signature")),
        (nothing, gpg.run("--store", "--output", "-", data=right)),
        ("it is not one message with one signature", gpg.sign(right, signer, options=["--detach-sign"])),
        (nothing, good[:-10]),
        (nothing, b"not a signature at all"),
    ]
    for reason, message in wrong:
        bench.store_signature(message)
        assert reason in await bench.judged()
    for number, (_, message) in enumerate(wrong, 1):
        bench.store_signature(message, number)
    refusal = await bench.judged()
    assert all(reason in refusal and f"/signature-{number}: " in refusal for number, (reason, _) in enumerate(wrong, 1))
    bench.store_signature(good, len(wrong))  # in place of what is no message at all: there skopeo gives up the whole image
    assert await bench.judged() == ""


async def test_rules_for_identities_are_skopeos(bench: Bench, gpg: Gpg, signer: str) -> None:
    key = gpg.export(signer, bench.directory / "key.gpg")
    repository = f"{bench.host}/{bench.repository}"
    cases: list[tuple[str, dict[str, Any] | None, bool]] = [
        (bench.name, None, True),
        (bench.name, {"type": "matchExact"}, True),
        (f"{repository}:v2", None, False),
        (f"{repository}:v2", MATCH_REPOSITORY, True),
        (repository, None, False),
        (repository, MATCH_REPOSITORY, True),
        ("example.com/vendor/app:v1", {"type": "exactReference", "dockerReference": "example.com/vendor/app:v1"}, True),
        ("example.com/vendor/app:v2", {"type": "exactReference", "dockerReference": "example.com/vendor/app:v1"}, False),
        ("example.com/vendor/app:v2", {"type": "exactRepository", "dockerRepository": "example.com/vendor/app"}, True),
        ("example.com/vendor/other:v2", {"type": "exactRepository", "dockerRepository": "example.com/vendor/app"}, False),
        (f"vendor.example/{bench.repository}:v1", {"type": "remapIdentity", "prefix": bench.host, "signedPrefix": "vendor.example"}, True),
        (f"vendor.example/{bench.repository}:v2", {"type": "remapIdentity", "prefix": bench.host, "signedPrefix": "vendor.example"}, False),
        (bench.name, {"type": "remapIdentity", "prefix": "elsewhere.example", "signedPrefix": "vendor.example"}, True),
    ]
    for identity, rule, accepted in cases:
        bench.require(signed_by(key, **({} if rule is None else {"signedIdentity": rule})))
        bench.store_signature(gpg.sign(claim(SIMPLE, identity, bench.digest), signer))
        refusal = await bench.judged()
        assert bool(refusal) is not accepted, (identity, rule, refusal)


async def test_every_requirement_must_be_met(bench: Bench, gpg: Gpg, signer: str, stranger: str) -> None:
    vendor, reviewer = (gpg.export(key, bench.directory / key) for key in (signer, stranger))
    bench.require(signed_by(vendor), {"type": "insecureAcceptAnything"}, signed_by(reviewer))
    right = claim(SIMPLE, bench.name, bench.digest)
    bench.store_signature(gpg.sign(right, signer))
    assert "[2]: signedBy" in await bench.judged()
    bench.store_signature(gpg.sign(right, stranger), 2)
    assert await bench.judged() == ""


async def test_several_key_files(bench: Bench, gpg: Gpg, signer: str, stranger: str) -> None:
    first, second = gpg.export(stranger, bench.directory / "1"), gpg.export(signer, bench.directory / "2", armor=True)
    bench.require({"type": "signedBy", "keyType": "GPGKeys", "keyPaths": [first, second]})
    bench.store_signature(gpg.sign(claim(SIMPLE, bench.name, bench.digest), signer))
    assert await bench.ours() == ""  # Debian 12's skopeo doesn't know keyPaths
    (bench.directory / "2").unlink()
    assert f"{second} can't be read: No such file or directory" in await bench.ours()


@contextmanager
def web_server(directory: Path) -> Iterator[str]:
    """The files of ``directory`` over http."""
    directory.mkdir(exist_ok=True)

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", 0), partial(Quiet, directory=directory)) as server:
        thread = Thread(target=server.serve_forever)
        thread.start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()
        thread.join()


async def test_signatures_over_http(bench: Bench, gpg: Gpg, signer: str) -> None:
    bench.require(signed_by(gpg.export(signer, bench.directory / "key.gpg")))
    with web_server(bench.directory / "web") as url:
        bench.configure(f"{url}/lookaside")
        assert f"there is none at {url}/lookaside/{bench.repository}@sha256=" in await bench.judged()
        bench.lookaside = bench.directory / "web" / "lookaside"
        bench.store_signature(gpg.sign(claim(SIMPLE, "example.com/other:v1", bench.digest), signer))
        bench.store_signature(gpg.sign(claim(SIMPLE, bench.name, bench.digest), signer), 2)
        assert await bench.judged() == ""
    with pytest.raises(RegistryUnavailable, match=url):
        await bench.ours()


async def test_without_gpgv_the_refusal_says_what_to_install(bench: Bench, gpg: Gpg, signer: str, monkeypatch: pytest.MonkeyPatch) -> None:
    bench.require(signed_by(gpg.export(signer, bench.directory / "key.gpg")))
    bench.store_signature(gpg.sign(claim(SIMPLE, bench.name, bench.digest), signer))
    monkeypatch.setenv("PATH", str(bench.directory))
    assert "gpgv is not installed" in await bench.ours()


# Sigstore


def sigstore(path: Path, **changes: Any) -> dict[str, Any]:
    return {"type": "sigstoreSigned", "keyPath": str(path), **changes}


async def test_sigstore_signatures(bench: Bench, tmp_path: Path) -> None:
    key, other = signing_node.sigstore_key(), signing_node.sigstore_key()
    public = tmp_path / "cosign.pub"
    public.write_bytes(signing_node.public_pem(key))
    repository = f"{bench.host}/{bench.repository}"
    bench.require(sigstore(public))
    refusal = await bench.judged()
    assert f"there is no sigstore signature {repository}:{bench.digest.replace(':', '-')}.sig" in refusal
    full, bare = (claim(COSIGN, name, bench.digest, optional=None) for name in (bench.name, repository))
    wrong = [
        ("it is not by the trusted key", full, signing_node.signed(full, other)),
        ("it is not by the trusted key", full, signing_node.signed(bare, key)),
        ("it is not base64", full, "!"),
        ("it is for the manifest", claim(COSIGN, bench.name, "sha256:" + "1" * 64), ""),
        ("it is for 'example.com/other:v1'", claim(COSIGN, "example.com/other:v1", bench.digest), ""),
        ("critical.type", claim(SIMPLE, bench.name, bench.digest), ""),
        (f"it is for '{repository}', which matchRepoDigestOrExact does not accept", bare, ""),
    ]
    items = [(payload, text or signing_node.signed(payload, key)) for _, payload, text in wrong]
    for (reason, _, _), item in zip(wrong, items, strict=True):
        signing_node.attach(bench.host, bench.repository, bench.digest, [item])
        assert reason in await bench.judged()
    signing_node.attach(bench.host, bench.repository, bench.digest, items)
    refusal = await bench.judged()
    assert all(reason in refusal for reason, _, _ in wrong)
    bench.require(sigstore(public, signedIdentity=MATCH_REPOSITORY))
    assert await bench.judged() == ""  # the last of them, as cosign makes it
    signing_node.attach(bench.host, bench.repository, bench.digest, [*items, (full, signing_node.signed(full, key))])
    bench.require(sigstore(public))
    assert await bench.judged() == ""
    assert await bench.judged(f"{repository}@{bench.digest}") == ""
    bench.configure(attachments=False)
    assert "use-sigstore-attachments is not set" in await bench.judged()


@pytest.mark.parametrize("bench", ["index"], indirect=True)
async def test_a_signed_index_or_manifest(bench: Bench, tmp_path: Path, layout: Path) -> None:
    key, public = signing_node.sigstore_key(), tmp_path / "cosign.pub"
    public.write_bytes(signing_node.public_pem(key))
    bench.require(sigstore(public))
    ours = [each["digest"] for each in _manifests(layout, bench.digest) if each["platform"]["architecture"] == "amd64"]
    foreign = [each["digest"] for each in _manifests(layout, bench.digest) if each["platform"]["architecture"] == "arm64"]
    payload = claim(COSIGN, bench.name, foreign[0])
    signing_node.attach(bench.host, bench.repository, foreign[0], [(payload, signing_node.signed(payload, key))])
    assert f"{bench.digest.replace(':', '-')}.sig" in await bench.judged()
    payload = claim(COSIGN, bench.name, bench.digest)
    signing_node.attach(bench.host, bench.repository, bench.digest, [(payload, signing_node.signed(payload, key))])
    assert await bench.ours() == ""  # cosign signs the index alone unless told to be recursive; skopeo wants the manifest signed
    payload = claim(COSIGN, bench.name, ours[0])
    signing_node.attach(bench.host, bench.repository, ours[0], [(payload, signing_node.signed(payload, key))])
    assert await bench.judged() == ""


def _manifests(layout: Path, digest: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = json.loads((layout / "blobs" / "sha256" / digest.partition(":")[2]).read_text())["manifests"]
    return found


# Policies


async def test_the_narrowest_scope_decides(bench: Bench) -> None:
    accept, refuse = [{"type": "insecureAcceptAnything"}], [{"type": "reject"}]
    repository = f"{bench.host}/{bench.repository}"
    scopes: dict[str, Any] = {}
    for scope, requirement in ((bench.host, accept), (f"{bench.host}/case", refuse), (repository, accept), (bench.name, refuse)):
        scopes[scope] = requirement
        bench.policy.write_text(json.dumps({"default": [{"type": "reject"}], "transports": {"docker": scopes}}))
        refusal = await bench.judged()
        assert refusal == ("" if requirement is accept else f"SignatureValidationFailed: {bench.name}: policy {bench.policy}: "
                           f"transports.docker['{scope}'][0]: reject")  # fmt: skip
    assert await bench.judged(f"{repository}@{bench.digest}") == ""


async def test_rejecting_needs_no_network(bench: Bench) -> None:
    bench.require({"type": "reject"})
    name = f"127.0.0.1:{free_port()}/some/image:1"
    assert await bench.ours(name) == f"SignatureValidationFailed: {name}: policy {bench.policy}: default[0]: reject"


async def test_a_broken_or_absent_policy_refuses_every_pull(bench: Bench) -> None:
    assert await bench.judged() == f"SignatureValidationFailed: the signature policy {bench.policy} is not there (images.signature_policy)"
    bench.policy.write_text('{"default": [{"type": "insecureAcceptAnything", "typo": 1}]}')
    assert f"the signature policy {bench.policy} is broken: default[0].typo: unknown field" in await bench.judged()
    async with bench.store(signature_policy=bench.directory / "none.json", signature_policy_required=False) as store:
        assert (await store.pull(bench.name)).repo_tags == [bench.name]


async def test_a_broken_registries_d_refuses_what_must_be_signed(bench: Bench, gpg: Gpg, signer: str) -> None:
    bench.require(signed_by(gpg.export(signer, bench.directory / "key.gpg")))
    (bench.registries_d / "more.yaml").write_text(f"docker: {{'{bench.host}': {{}}}}")
    assert f"is defined in {bench.registries_d}/here.yaml as well" in await bench.judged()


# Namespaces


async def test_a_namespace_has_its_own_policy(bench: Bench, gpg: Gpg, signer: str) -> None:
    bench.require({"type": "insecureAcceptAnything"})
    strict = bench.directory / "policies"
    strict.mkdir()
    rule = signed_by(gpg.export(signer, bench.directory / "key.gpg"))
    (strict / "strict.json").write_text(json.dumps({"default": [rule]}))
    async with bench.store(signature_policy_dir=strict) as store:
        with pytest.raises(SignatureValidationFailed, match=r"policies/strict\.json: default\[0\]: signedBy"):
            await store.pull(bench.name, None, "strict")
        assert store.list() == []
        image = await store.pull(bench.name, None, "lax")
        await store.admit(image.id, bench.name, "lax")
        await store.admit(image.id, image.id, "")
        with pytest.raises(SignatureValidationFailed, match=r"strict\.json: default\[0\].*the pull found no simple signature"):
            await store.admit(image.id, bench.name, "strict")
        with pytest.raises(SignatureValidationFailed, match="the request has only its id"):
            await store.admit(image.id, image.id, "strict")
        bench.store_signature(gpg.sign(claim(SIMPLE, bench.name, bench.digest), signer))
        assert (await store.pull(bench.name, None, "lax")).id == image.id
        await store.admit(image.id, bench.name, "strict")
        with pytest.raises(SignatureValidationFailed, match="does not accept"):
            await store.admit(image.id, f"{bench.name}2", "strict")
    shutil.rmtree(bench.lookaside)
    async with bench.store(signature_policy_dir=strict) as store:  # what was kept outlives the server and the network
        await store.admit(image.id, bench.name, "strict")
        (strict / "strict.json").write_text('{"default": [{"type": "reject"}]}')
        with pytest.raises(SignatureValidationFailed, match="reject"):
            await store.admit(image.id, bench.name, "strict")


async def test_an_image_that_came_before_any_namespace_had_a_policy_must_be_pulled_again(bench: Bench, gpg: Gpg, signer: str) -> None:
    bench.require({"type": "insecureAcceptAnything"})
    strict = bench.directory / "policies"
    bench.store_signature(gpg.sign(claim(SIMPLE, bench.name, bench.digest), signer))
    async with bench.store(signature_policy_dir=strict) as store:
        image = await store.pull(bench.name)
        assert not (bench.directory / "store" / "signatures").exists()
        strict.mkdir()
        (strict / "a.json").write_text(json.dumps({"default": [signed_by(gpg.export(signer, bench.directory / "key.gpg"))]}))
        with pytest.raises(SignatureValidationFailed, match="pull it again"):
            await store.admit(image.id, bench.name, "a")
        await store.pull(bench.name)
        await store.admit(image.id, bench.name, "a")


def test_skopeo_judges_too() -> None:
    """Each ``judged`` above runs it: a version that fails for another reason would prove nothing."""
    assert "skopeo version" in subprocess.run(["skopeo", "--version"], capture_output=True, text=True, check=True).stdout
