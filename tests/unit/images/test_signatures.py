"""What signatures say and who made them: claims, key files, gpgv's status lines, sigstore's kinds of keys."""

from __future__ import annotations

import base64
import hashlib
import json
from typing import Any

import pytest
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa, x25519
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

from bridge.errors import CorruptData
from bridge.images import gpg, reference, signatures, sigstore_keys
from bridge.images.signatures import SIGSTORE, SIMPLE, Refused
from bridge.images.signed_identity import IdentityRule

DATA = b'{"schemaVersion": 2}'
DIGEST = "sha256:" + hashlib.sha256(DATA).hexdigest()
NAME = "docker.io/library/busybox:1"


def claim(kind: str = SIMPLE, digest: str = DIGEST, name: Any = NAME, optional: Any = None, **more: Any) -> bytes:
    critical = {"type": kind, "image": {"docker-manifest-digest": digest}, "identity": {"docker-reference": name}}
    return json.dumps({"critical": {**critical, **more}, "optional": {} if optional is None else optional}).encode()


def check(payload: bytes, kind: str = SIMPLE) -> None:
    signatures.check_claim(payload, kind, signatures.document(DATA, DIGEST), reference.parse(NAME), IdentityRule())


def test_good_claims() -> None:
    check(claim())
    check(claim(SIGSTORE), SIGSTORE)
    check(claim(SIGSTORE).replace(b'"optional": {}', b'"optional": null'), SIGSTORE)
    check(claim(optional={"creator": "a", "timestamp": 1483228800, "more": []}))
    check(claim(digest="sha512:" + hashlib.sha512(DATA).hexdigest()))


@pytest.mark.parametrize(
    ("payload", "why"),
    [
        (b"\xff", "it is not JSON"),
        (claim()[:-1], "it is not JSON"),
        (claim(SIGSTORE), "critical.type: 'cosign container image signature' is not 'atomic"),
        (claim(more=1), "critical.more: unknown field"),
        (claim(digest="sha256:0"), "docker-manifest-digest: 'sha256:0' is not"),
        (claim(name=1), "docker-reference: must be a string"),
        (claim(optional=[]), "optional: must be an object"),
        (claim(optional={"timestamp": 1.5}), "optional.timestamp: must be a whole number"),
        (claim(optional={"creator": 1}), "optional.creator: must be a string"),
        (claim().replace(b'"optional"', b'"critical": {}, "optional"'), "'critical' is given twice"),
        (claim().replace(b'"optional"', b'"other"'), "other: unknown field"),
        (claim().replace(b'"optional": {}', b'"optional": null'), "optional: must be an object"),
        (claim(digest="sha256:" + "0" * 64), "it is for the manifest sha256:0000"),
        (claim(name="busybox:2"), "it is for 'busybox:2', which matchRepoDigestOrExact does not accept for docker.io/library/busybox:1"),
    ],
)
def test_bad_claims(payload: bytes, why: str) -> None:
    with pytest.raises(Refused, match=why):
        check(payload)


RING = bytes([0x98, 0x33, 4]) + bytes(range(60))


def armored(data: bytes, headers: str = "Version: x\n") -> bytes:
    begin, end = (f"-----{word} PGP PUBLIC KEY BLOCK-----\n" for word in ("BEGIN", "END"))
    return f"{begin}{headers}\n{base64.encodebytes(data).decode()}=abcd\n{end}".encode()


def test_keyrings_in_both_forms() -> None:
    assert gpg.keyring(RING, "k") == RING
    assert gpg.keyring(armored(RING), "k") == RING
    assert gpg.keyring(b"words\r\n" + armored(RING, "").replace(b"\n", b"\r\n") + armored(RING), "k") == RING + RING


@pytest.mark.parametrize("data", [b"", b"text", b"-----BEGIN PGP PUBLIC KEY BLOCK-----\n\nAA", armored(RING).replace(b"mDME", b"m?ME")])
def test_what_is_no_keyring(data: bytes) -> None:
    with pytest.raises(CorruptData, match=r"^/k\.gpg: "):
        gpg.keyring(data, "/k.gpg")


GOOD = ["NEWSIG s@example.com", "PLAINTEXT 62 1 p", "GOODSIG 43A7 Signer", "VALIDSIG 4AC2 2026-11-22 1 0 4 0 22 8 00 4AC2"]


def judge(*lines: str) -> str:
    return gpg.judge([line.split() for line in lines])


def test_a_good_status() -> None:
    assert judge(*GOOD) == "4AC2"


@pytest.mark.parametrize(
    ("lines", "why"),
    [
        ([*GOOD[:2], "EXPKEYSIG 43A7 Signer", GOOD[3]], r"the key has expired \(key 4AC2\)"),
        ([*GOOD[:2], "REVKEYSIG 43A7 Signer", GOOD[3]], r"the key has been revoked \(key 4AC2\)"),
        ([*GOOD[:2], "EXPSIG 43A7 Signer", GOOD[3]], r"the signature has expired \(key 4AC2\)"),
        ([*GOOD[:2], "BADSIG 43A7 Signer"], r"the signature does not fit what is signed \(key 43A7\)"),
        ([*GOOD[:2], "ERRSIG 43A7 22 8 00 1 9 4AC2", "NO_PUBKEY 43A7"], r"the key is none of the trusted ones \(key 43A7\)"),
        ([*GOOD[:2], "ERRSIG 43A7 99 8 00 1 4 4AC2"], "the signature can't be checked"),
        ([GOOD[1], "NODATA 4"], "it is no signed OpenPGP message$"),
        (GOOD[:3], "not one message with one signature"),
        ([*GOOD, *GOOD], "not one message with one signature"),
        ([*GOOD, "PLAINTEXT 62 1 q"], "not one message with one signature"),
        ([], "not one message with one signature"),
    ],
)
def test_bad_statuses(lines: list[str], why: str) -> None:
    with pytest.raises(Refused, match=why):
        judge(*lines)


def pem(key: Any) -> bytes:
    return bytes(key.public_key().public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo))


def test_sigstore_signatures_by_each_kind_of_key() -> None:
    curves = [ec.generate_private_key(curve) for curve in (ec.SECP256R1(), ec.SECP384R1())]
    edwards, big = ed25519.Ed25519PrivateKey.generate(), rsa.generate_private_key(65537, 2048)
    made = [key.sign(DATA, ec.ECDSA(hashes.SHA256())) for key in curves]
    made += [edwards.sign(DATA), big.sign(DATA, padding.PKCS1v15(), hashes.SHA256())]
    keys = [sigstore_keys.load(pem(key), "k") for key in (*curves, edwards, big)]
    for key, raw in zip(keys, made, strict=True):
        text = base64.b64encode(raw).decode()
        sigstore_keys.verify(DATA, text, [key])
        sigstore_keys.verify(DATA, text, keys)
        with pytest.raises(Refused, match="it is by none of the 3 trusted keys"):
            sigstore_keys.verify(DATA, text, [other for other in keys if other is not key])
        with pytest.raises(Refused, match="it is not by the trusted key"):
            sigstore_keys.verify(DATA + b" ", text, [key])


def test_keys_that_are_refused() -> None:
    with pytest.raises(CorruptData, match=r"^/k\.pub: it holds no PEM public key"):
        sigstore_keys.load(b"nothing", "/k.pub")
    with pytest.raises(CorruptData, match="X25519PublicKey are not supported"):
        sigstore_keys.load(pem(x25519.X25519PrivateKey.generate()), "/k.pub")
    with pytest.raises(CorruptData, match="1024 bits is too short"):
        sigstore_keys.load(pem(rsa.generate_private_key(65537, 1024)), "/k.pub")
