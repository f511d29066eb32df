"""OpenPGP messages checked by the program gpgv, in a directory of its own, with a deadline. We know no OpenPGP ourselves.

gpgv trusts every key in the rings that it is given, says what is wrong with key and signature in status lines (GnuPG's
doc/DETAILS), and exits with 0 also for expired and revoked keys: the lines decide.
"""

from __future__ import annotations

import base64
import binascii
import os
import re
import shutil
import tempfile
from collections.abc import Sequence
from pathlib import Path

from anyio.to_thread import run_sync

from bridge.errors import CorruptData, HostError, TimedOut
from bridge.host import process
from bridge.images.signatures import Refused

PROGRAM = "gpgv"
_SECONDS = 20.0
_CLAIM_BYTES = 1 << 20
"""A claim has some hundred bytes; a bomb inside a compressed message has more."""
_STATUS_BYTES = 64 << 10
_ARMOR = re.compile(rb"-----BEGIN PGP PUBLIC KEY BLOCK-----[ \t]*\r?\n(.*?)-----END PGP PUBLIC KEY BLOCK-----", re.DOTALL)
_BAD = {
    "BADSIG": "the signature does not fit what is signed",
    "EXPSIG": "the signature has expired",
    "EXPKEYSIG": "the key has expired",
    "REVKEYSIG": "the key has been revoked",
    "NO_PUBKEY": "the key is none of the trusted ones",
    "ERRSIG": "the signature can't be checked",
    "NODATA": "it is no signed OpenPGP message",
    "UNEXPECTED": "it is no signed OpenPGP message",
}


def keyring(data: bytes, where: str) -> bytes:
    """A binary keyring from one, or from armored keys (one block or several). Raises CorruptData naming ``where``."""
    if b"-----BEGIN PGP" not in data:
        if not data or not data[0] & 0x80:
            raise CorruptData(f"{where}: it holds no OpenPGP public keys")
        return data
    blocks = [_dearmored(block, where) for block in _ARMOR.findall(data)]
    if not blocks:
        raise CorruptData(f"{where}: it holds no whole block of armored OpenPGP public keys")
    return b"".join(blocks)


def _dearmored(block: bytes, where: str) -> bytes:
    """The bytes of an armored block (RFC 9580 §6.2): headers end with an empty line, a checksum may follow after "="."""
    lines = [line.strip() for line in block.splitlines()]
    if b"" in lines:
        lines = lines[lines.index(b"") + 1 :]
    body = b"".join(line for line in lines if not (line.startswith(b"=") and len(line) == 5))
    try:
        return base64.b64decode(body, validate=True)
    except binascii.Error as exc:
        raise CorruptData(f"{where}: its armor is damaged: {exc}") from exc


async def verify(message: bytes, rings: Sequence[bytes]) -> bytes:
    """What ``message`` says, signed by a valid key of ``rings`` (binary keyrings), by exactly one.

    Raises Refused, and HostError when gpgv is missing or did not answer in time.
    """
    directory = Path(await run_sync(tempfile.mkdtemp, "", "cri-bridge-gpgv-"))
    try:
        argv, status = await run_sync(_prepare, directory, message, rings)
        environment = {"PATH": os.environ.get("PATH", os.defpath), "GNUPGHOME": str(directory), "LC_ALL": "C.UTF-8"}
        try:
            done = await process.run(argv, env=environment, timeout=_SECONDS, max_output=_CLAIM_BYTES, pass_fds=(status,))
            told = await run_sync(_status, directory)
        finally:
            os.close(status)
    except FileNotFoundError as exc:
        raise HostError(f"{PROGRAM} is not installed: signatures by GPG keys can't be checked without it (Debian's package gpgv)") from exc
    except TimedOut as exc:
        raise Refused(f"{PROGRAM} had no answer within {_SECONDS:g} s") from exc
    finally:
        await run_sync(shutil.rmtree, directory, True)
    judge(told)
    if done.returncode != 0 or done.truncated:
        said = done.stderr.decode("utf-8", "replace").strip().replace("\n", "; ")
        raise Refused(f"{PROGRAM} exited with {done.returncode}: {said or 'it said nothing'}")
    return done.stdout


def _prepare(directory: Path, message: bytes, rings: Sequence[bytes]) -> tuple[list[str], int]:
    """The command, and an open file for its status lines."""
    program = shutil.which(PROGRAM)
    if program is None:
        raise FileNotFoundError(PROGRAM)
    argv = [program, "--homedir", str(directory)]
    for number, ring in enumerate(rings):
        (directory / f"ring-{number}.gpg").write_bytes(ring)
        argv += ["--keyring", str(directory / f"ring-{number}.gpg")]
    (directory / "message").write_bytes(message)
    status = os.open(directory / "status", os.O_CREAT | os.O_WRONLY | os.O_CLOEXEC, 0o600)
    return [*argv, "--status-fd", str(status), "--output", "-", str(directory / "message")], status


def _status(directory: Path) -> list[list[str]]:
    with open(directory / "status", "rb") as file:
        text = file.read(_STATUS_BYTES).decode("utf-8", "replace")
    return [line.split()[1:] for line in text.splitlines() if line.startswith("[GNUPG:] ") and len(line.split()) > 1]


def judge(status: Sequence[Sequence[str]]) -> str:
    """The fingerprint of the signing key by the status lines (words without the prefix). Raises Refused, with the key where it is known."""
    for line in status:
        if line[0] in _BAD:
            reason = _reason(status, line)
            key = next((each[1] for each in status if each[0] == "VALIDSIG"), line[1] if len(line) > 1 and line[0] != "NODATA" else "")
            raise Refused(f"{reason} (key {key})" if key else reason)
    words = [line[0] for line in status]
    if words.count("NEWSIG") != 1 or words.count("GOODSIG") != 1 or words.count("VALIDSIG") != 1 or words.count("PLAINTEXT") != 1:
        raise Refused("it is not one message with one signature")
    return next(line[1] for line in status if line[0] == "VALIDSIG")


def _reason(status: Sequence[Sequence[str]], line: Sequence[str]) -> str:
    """ERRSIG comes before the line that says why."""
    if line[0] == "ERRSIG" and any(each[0] == "NO_PUBKEY" for each in status):
        return _BAD["NO_PUBKEY"]
    return _BAD[line[0]]
