"""Sigstore signatures by public keys: what ``cosign sign --key`` makes. The cryptography is the library of that name.

ECDSA and RSA (PKCS #1 v1.5) over SHA-256, whatever the key's size, and Ed25519: as sigstore's own verifiers do. Imported only
when a policy needs it, as it takes a dozen MiB.
"""

from __future__ import annotations

import base64
import binascii
from collections.abc import Sequence

from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec, ed25519, padding, rsa
from cryptography.hazmat.primitives.serialization import load_pem_public_key

from bridge.errors import CorruptData
from bridge.images.signatures import Refused

PublicKey = ec.EllipticCurvePublicKey | rsa.RSAPublicKey | ed25519.Ed25519PublicKey
_SMALLEST_RSA = 2048


def load(data: bytes, where: str) -> PublicKey:
    """A PEM public key. Raises CorruptData naming ``where``."""
    try:
        key = load_pem_public_key(data)
    except (ValueError, UnsupportedAlgorithm) as exc:
        raise CorruptData(f"{where}: it holds no PEM public key: {exc}") from exc
    if not isinstance(key, PublicKey):
        raise CorruptData(f"{where}: keys of the kind {type(key).__name__} are not supported, only ECDSA, RSA and Ed25519")
    if isinstance(key, rsa.RSAPublicKey) and key.key_size < _SMALLEST_RSA:
        raise CorruptData(f"{where}: an RSA key of {key.key_size} bits is too short to be trusted; at least {_SMALLEST_RSA} are wanted")
    return key


def verify(payload: bytes, signature: str, keys: Sequence[PublicKey]) -> None:
    """Check that one of ``keys`` signed ``payload``; ``signature`` is base64. Raises Refused."""
    try:
        raw = base64.b64decode(signature, validate=True)
    except (binascii.Error, ValueError) as exc:
        raise Refused("it is not base64") from exc
    if not any(_fits(key, raw, payload) for key in keys):
        raise Refused("it is not by the trusted key" if len(keys) == 1 else f"it is by none of the {len(keys)} trusted keys")


def _fits(key: PublicKey, signature: bytes, payload: bytes) -> bool:
    try:
        match key:
            case ec.EllipticCurvePublicKey():
                key.verify(signature, payload, ec.ECDSA(hashes.SHA256()))
            case rsa.RSAPublicKey():
                key.verify(signature, payload, padding.PKCS1v15(), hashes.SHA256())
            case _:
                key.verify(signature, payload)
    except InvalidSignature:
        return False
    return True
