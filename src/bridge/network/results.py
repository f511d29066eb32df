"""What a CNI plugin answers: results of every specification version, and its error object (section 5). No I/O."""

from __future__ import annotations

import ipaddress
import json
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from bridge.network.conf import VERSIONS


class BadAnswer(Exception):
    """The plugin's output is not what the specification asks for; the text says what is wrong with it."""


def parse_result(stdout: bytes, version: str) -> Mapping[str, Any]:
    """The result object of an ADD as the plugin gave it, to be passed on as ``prevResult``.

    A missing ``cniVersion`` is filled in with ``version``, the one spoken. Raises BadAnswer.
    """
    result = _object(stdout)
    spoken = result.get("cniVersion") or version
    if spoken not in VERSIONS:
        raise BadAnswer(f"its result has the unknown cniVersion {spoken!r}")
    return {**result, "cniVersion": spoken}


def parse_versions(stdout: bytes) -> tuple[str, ...]:
    """The versions that we and the plugin speak, from its answer to VERSION, oldest first. Raises BadAnswer."""
    listed = _object(stdout).get("supportedVersions")
    if not isinstance(listed, list):
        raise BadAnswer("its answer to VERSION lacks supportedVersions")
    return tuple(version for version in VERSIONS if version in listed)


def pod_ips(result: Mapping[str, Any], ifname: str) -> Sequence[str]:
    """The addresses of the pod's interface ``ifname``, without prefix length, in the plugins' order. Raises BadAnswer.

    An address that names no interface is the pod's; one of another interface (a bridge's, a second one in the pod) is not.
    """
    interfaces = result.get("interfaces") or []
    if not isinstance(interfaces, list):
        raise BadAnswer("its result's interfaces are not a list")
    found: dict[str, None] = {}
    for address, index in _addresses(result):
        if index is not None and not _is_pod_interface(interfaces, index, ifname):
            continue
        try:
            found[str(ipaddress.ip_interface(address).ip)] = None
        except ValueError as exc:
            raise BadAnswer(f"its result has an address that is none: {address!r}") from exc
    return tuple(found)


def describe_failure(stdout: bytes, stderr: bytes, returncode: int) -> str:
    """In words, why a plugin failed: its error object if it wrote one, else whatever it left, else its exit status."""
    status = f"killed by signal {-returncode}" if returncode < 0 else f"exit code {returncode}"
    noise = tail(stderr)
    try:
        error = _object(stdout)
        message, details, code = error.get("msg"), error.get("details"), error.get("code")
    except BadAnswer:
        said = "; ".join(part for part in (tail(stdout), noise) if part)
        return f"{status}: {said}" if said else f"{status}, and it said nothing"
    text = str(message) if message else "no message"
    if details:
        text += f"; {details}"
    text += f" (code {code})" if code is not None else f" ({status})"
    return f"{text} [stderr: {noise}]" if noise and noise not in text else text


def tail(output: bytes, *, lines: int = 8, limit: int = 1000) -> str:
    """The last ``lines`` lines of ``output`` joined to one, at most ``limit`` characters of them."""
    kept = [line.strip() for line in output.decode(errors="replace").splitlines() if line.strip()][-lines:]
    return "; ".join(kept)[-limit:]


def _object(stdout: bytes) -> Mapping[str, Any]:
    if not stdout.strip():
        raise BadAnswer("it wrote nothing to its standard output")
    try:
        raw = json.loads(stdout)
    except (ValueError, RecursionError) as exc:
        raise BadAnswer(f"its output is not JSON ({exc}): {tail(stdout, limit=200)!r}") from exc
    if not isinstance(raw, dict):
        raise BadAnswer(f"its output is not a JSON object: {tail(stdout, limit=200)!r}")
    return raw


def _addresses(result: Mapping[str, Any]) -> Iterator[tuple[str, int | None]]:
    for family in ("ip4", "ip6"):  # 0.1.0 and 0.2.0
        entry = result.get(family)
        if isinstance(entry, dict):
            yield str(entry.get("ip")), None
    entries = result.get("ips") or []
    if not isinstance(entries, list):
        raise BadAnswer("its result's ips are not a list")
    for entry in entries:
        if not isinstance(entry, dict):
            raise BadAnswer(f"its result has an address that is none: {entry!r}")
        index = entry.get("interface")
        yield str(entry.get("address")), index if isinstance(index, int) else None


def _is_pod_interface(interfaces: Sequence[Any], index: int, ifname: str) -> bool:
    if not 0 <= index < len(interfaces) or not isinstance(interfaces[index], dict):
        raise BadAnswer(f"its result has an address of interface {index}, but only {len(interfaces)} interfaces")
    interface = interfaces[index]
    return interface.get("name") == ifname and bool(interface.get("sandbox"))
