"""Signers: GPG keys in a home of their own, sigstore keys, claims put beside images; and skopeo to check what we check."""

from __future__ import annotations

import base64
import hashlib
import json
import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.request import Request, urlopen

from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

SIMPLE = "atomic container signature"
COSIGN = "cosign container image signature"
_MANIFEST = "application/vnd.oci.image.manifest.v1+json"


def claim(kind: str, reference: str, digest: str, **changes: Any) -> bytes:
    """The signed document; ``changes`` replace its top-level fields."""
    critical = {"type": kind, "image": {"docker-manifest-digest": digest}, "identity": {"docker-reference": reference}}
    return json.dumps({"critical": critical, "optional": {}, **changes}).encode()


def days_ago(days: int) -> str:
    """For ``at``: a clock that runs on from there."""
    return time.strftime("%Y%m%dT%H%M%S", time.gmtime(time.time() - days * 86400))


def base64_of(*paths: str) -> str:
    """The files one after the other, as a policy's keyData has them."""
    return base64.b64encode(b"".join(Path(path).read_bytes() for path in paths)).decode()


class Gpg:
    """A GPG home with keys made for tests."""

    def __init__(self, home: Path) -> None:
        self.home = home

    def run(self, *arguments: str, data: bytes = b"", environment: Mapping[str, str] | None = None) -> bytes:
        argv = ["gpg", "--homedir", str(self.home), "--batch", "--quiet", "--no-tty", "--passphrase", "", "--pinentry-mode", "loopback"]
        done = subprocess.run([*argv, *arguments], input=data, capture_output=True, check=False, env={**os.environ, **(environment or {})})
        assert done.returncode == 0, done.stderr.decode()
        return done.stdout

    def key(self, name: str, *, at: str = "", life: str = "1y") -> str:
        """A new key for signing; its fingerprint. ``at`` is when it was made, ``20200101T000000``."""
        when = ["--faked-system-time", at] if at else []
        self.run(*when, "--quick-gen-key", f"{name} <{name}@example.com>", "ed25519", "sign", life)
        lines = self.run("--with-colons", "--list-keys", f"{name}@example.com").decode().splitlines()
        return next(line.split(":")[9] for line in lines if line.startswith("fpr:"))

    def revoke(self, fingerprint: str) -> None:
        """Revoke a key by the certificate that was made with it."""
        text = (self.home / "openpgp-revocs.d" / f"{fingerprint}.rev").read_text().replace("\n:-----BEGIN", "\n-----BEGIN")
        self.run("--import", data=text.encode())

    def sign(self, data: bytes, fingerprint: str, *, at: str = "", options: Sequence[str] = ()) -> bytes:
        """``data`` inside a signed message."""
        when = ["--faked-system-time", at] if at else []
        return self.run(*when, *options, "--local-user", fingerprint, "--output", "-", "--sign", data=data)

    def export(self, fingerprint: str, path: Path, *, armor: bool = False) -> str:
        """Write the public key; the path as a policy has it."""
        path.write_bytes(self.run(*(["--armor"] if armor else []), "--export", fingerprint))
        return str(path)


@contextmanager
def gpg_home() -> Iterator[Gpg]:
    """A home that is removed with its agent. Not below pytest's directory: the agent's socket needs a short path."""
    home = Path(tempfile.mkdtemp(prefix="cbg-"))
    try:
        yield Gpg(home)
    finally:
        subprocess.run(["gpgconf", "--homedir", str(home), "--kill", "all"], check=False, capture_output=True)
        shutil.rmtree(home, ignore_errors=True)


def sigstore_key() -> ec.EllipticCurvePrivateKey:
    """As cosign makes them."""
    return ec.generate_private_key(ec.SECP256R1())


def public_pem(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo)


def signed(payload: bytes, key: ec.EllipticCurvePrivateKey) -> str:
    """The signature as cosign writes it."""
    return base64.b64encode(key.sign(payload, ec.ECDSA(hashes.SHA256()))).decode()


def head(host: str, repository: str, target: str) -> str:
    """The digest of a manifest in the registry."""
    accept = f"{_MANIFEST}, application/vnd.oci.image.index.v1+json"
    with urlopen(Request(f"http://{host}/v2/{repository}/manifests/{target}", headers={"Accept": accept}, method="HEAD")) as answer:
        return str(answer.headers["Docker-Content-Digest"])


def _upload(host: str, repository: str, data: bytes, media_type: str) -> dict[str, Any]:
    digest = f"sha256:{hashlib.sha256(data).hexdigest()}"
    with urlopen(Request(f"http://{host}/v2/{repository}/blobs/uploads/", method="POST")) as answer:
        where = answer.headers["Location"]
    headers = {"Content-Type": "application/octet-stream"}
    with urlopen(Request(f"{where}{'&' if '?' in where else '?'}digest={digest}", data=data, headers=headers, method="PUT")):
        return {"mediaType": media_type, "digest": digest, "size": len(data)}


def attach(host: str, repository: str, digest: str, items: Sequence[tuple[bytes, str]]) -> None:
    """Put sigstore signatures (claim, signature) of the manifest ``digest`` beside it, as cosign does."""
    claims = [(_upload(host, repository, payload, "application/vnd.dev.cosign.simplesigning.v1+json"), text) for payload, text in items]
    layers = [{**layer, "annotations": {"dev.cosignproject.cosign/signature": text}} for layer, text in claims]
    diff_ids = [layer["digest"] for layer in layers]
    config = {"architecture": "", "os": "", "config": {}, "rootfs": {"type": "layers", "diff_ids": diff_ids}}
    described = _upload(host, repository, json.dumps(config).encode(), "application/vnd.oci.image.config.v1+json")
    manifest = {"schemaVersion": 2, "mediaType": _MANIFEST, "config": described, "layers": layers}
    target = f"http://{host}/v2/{repository}/manifests/{digest.replace(':', '-')}.sig"
    with urlopen(Request(target, data=json.dumps(manifest).encode(), headers={"Content-Type": _MANIFEST}, method="PUT")):
        pass


def skopeo(directory: Path, policy: Path, registries_d: Path, image: str) -> str:
    """What skopeo has against ``image`` under the same files, "" for nothing."""
    target = directory / "skopeo-copy"
    argv = ["skopeo", "--policy", str(policy), "--registries.d", str(registries_d), "--override-arch", "amd64", "copy", "-q"]
    done = subprocess.run([*argv, "--src-tls-verify=false", f"docker://{image}", f"dir:{target}"], capture_output=True, check=False)
    shutil.rmtree(target, ignore_errors=True)
    return done.stderr.decode() if done.returncode else ""
