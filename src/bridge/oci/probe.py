"""Finds out what a handler's runtime can really do here: its claims, the kernel's facts, and a trial run.

The answer is kept under the state root (gone at reboot) for the same binary and the same cgroup set-up, so that a restart of
the server runs nothing.
"""

from __future__ import annotations

import os
import shutil
import stat
from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log, probe_cache
from bridge.errors import HostError, RuntimeFailed, TimedOut, Unsupported
from bridge.oci import checkpoint_trial, checkpoints, claims
from bridge.oci.cli import OciCli
from bridge.oci.dialect import ExecCgroup
from bridge.oci.trial import trial
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support

_logger = log.get("oci.probe")
_VERSION = 6
_UNASKED = Feature(Support.SUPPORTED)
_ALWAYS = (Ability.EXEC, Ability.TTY, Ability.SHARED_PID, Ability.TARGET_PID, Ability.UPDATE, Ability.PAUSE, Ability.CONTAINER_LIMITS)
_KERNEL_SHARED = (
    *(Ability.HOST_NETWORK, Ability.HOST_NAMESPACES, Ability.SYSCTLS, Ability.MOUNT_PROPAGATION),
    *(Ability.DEVICES, Ability.HOST_DEVICES, Ability.START_CONTAINER_HOOKS),
)


@dataclass(frozen=True, slots=True)
class Findings:
    """What the probe of one binary found."""

    features: RuntimeFeatures
    exec_cgroup: ExecCgroup


@dataclass(frozen=True, slots=True)
class KernelFacts:
    """What this host has, whatever the runtime was built with."""

    seccomp: bool
    apparmor: bool
    selinux: bool
    user_namespaces: bool
    recursive_attributes: bool
    systemd: bool
    criu: bool

    @classmethod
    def read(cls, root: Path = Path("/")) -> KernelFacts:
        """From /proc and /sys below ``root``. Blocks."""
        release = _text(root / "proc/sys/kernel/osrelease").split(".")
        version = (int(release[0]), int("".join(c for c in release[1] if c.isdigit()))) if len(release) > 1 else (0, 0)
        return cls(
            seccomp="Seccomp:" in _text(root / "proc/self/status"),
            apparmor=_text(root / "sys/module/apparmor/parameters/enabled").startswith("Y"),
            selinux=(root / "sys/fs/selinux/enforce").exists(),
            user_namespaces=(root / "proc/self/ns/user").exists() and _text(root / "proc/sys/user/max_user_namespaces").strip() != "0",
            recursive_attributes=version >= (5, 12),
            systemd=(root / "run/systemd/system").exists(),
            criu=any((root / where / "criu").exists() for where in ("usr/sbin", "usr/bin", "usr/local/sbin")),
        )


def _text(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""


def judge(said: claims.Claims, facts: KernelFacts, *, verified: str) -> dict[Ability, Feature]:
    """Each ability: the runtime's claim and the host's facts must agree; ``verified`` says what the trial proved."""
    needs = {
        Ability.SECCOMP: (facts.seccomp, "the kernel has no seccomp"),
        Ability.APPARMOR: (facts.apparmor, "AppArmor is not enabled in the kernel"),
        Ability.SELINUX: (facts.selinux, "SELinux is not enabled in the kernel"),
        Ability.USER_NAMESPACES: (facts.user_namespaces, "the kernel allows no user namespaces"),
        Ability.RECURSIVE_READ_ONLY: (facts.recursive_attributes, "mount_setattr needs Linux 5.12"),
        Ability.IDMAPPED_MOUNTS: (facts.recursive_attributes, "mount_setattr needs Linux 5.12"),
        Ability.SYSTEMD_CGROUP: (facts.systemd, "systemd does not run this host"),
        Ability.CHECKPOINT: (facts.criu, "criu is not installed"),
        Ability.NET_DEVICES: (True, ""),
        Ability.RDT_SCHEMATA: (True, ""),
    }
    found = {ability: Feature(Support.SUPPORTED, verified) for ability in _ALWAYS}
    found |= {ability: Feature(Support.SUPPORTED, "the node's own kernel") for ability in _KERNEL_SHARED}
    found[Ability.PORT_FORWARD] = Feature(Support.SUPPORTED, "through the pod's network namespace")
    found[Ability.STATS] = Feature(Support.SUPPORTED, "from the container's cgroup")
    for ability, (there, why) in needs.items():
        claim = said.abilities.get(ability)
        if claim is not True:
            missing = f"{said.version} says nothing of it" if claim is None else f"{said.version} was built without it"
            found[ability] = Feature(Support.UNSUPPORTED, f"{missing} ({said.source})")
        elif not there:
            found[ability] = Feature(Support.UNSUPPORTED, why)
        else:
            found[ability] = Feature(Support.SUPPORTED, verified if ability is Ability.SECCOMP else f"{said.source} and the kernel")
    found[Ability.SECCOMP_NOTIFY] = found[Ability.SECCOMP]
    return found


def exec_cgroup_style(help_text: str) -> ExecCgroup:
    """How ``exec --cgroup`` works, from the verb's help: runc names ``[<controller>:]<cgroup>``, crun a path."""
    if "--cgroup" not in help_text:
        return ExecCgroup.NONE
    return ExecCgroup.CONTROLLER if "<controller>" in help_text else ExecCgroup.PATH


async def probe(cli: OciCli, *, cache: Path, scratch: Path, bundles: Path = Path("/")) -> Findings:
    """Probe the runtime of ``cli``, whose bundles will lie below ``bundles``.

    Raises Unsupported, RuntimeFailed or HostError with the reason why it can't be used here.
    """
    closed = await to_thread.run_sync(_closed, scratch.parent, bundles)
    identity = {**await to_thread.run_sync(_identity, cli), "closed": closed}
    known = await to_thread.run_sync(probe_cache.load, cache, identity)
    if known is not None:
        return Findings(known[0], ExecCgroup(known[1]["exec_cgroup"]))
    findings = await _probe(cli, scratch, closed)
    if closed or findings.features.abilities.get(Ability.USER_NAMESPACES, _UNASKED).support is not Support.UNSUPPORTED:
        keep = partial(probe_cache.save, cache, identity, findings.features, exec_cgroup=findings.exec_cgroup)
        await to_thread.run_sync(keep)  # else tried anew at the next start: a busy host may have failed it
    _logger.info("handler %s: %s at %s", cli.settings.handler, findings.features.version, cli.settings.path)
    return findings


async def _probe(cli: OciCli, scratch: Path, closed: Sequence[str]) -> Findings:
    facts = await to_thread.run_sync(KernelFacts.read)
    if cli.settings.systemd_cgroup and not facts.systemd:
        raise Unsupported("its cgroup driver is systemd, but systemd does not run this host: set runtime.cgroup_driver to cgroupfs")
    text = await cli.version()
    features = await cli.features()
    said = claims.from_version(text) if features is None else claims.from_features(text, features)
    dialect = cli.dialect
    said = replace(said, abilities={**said.abilities, **dialect.abilities})
    style = dialect.exec_cgroup or exec_cgroup_style(await cli.help("exec"))
    seccomp = facts.seccomp and said.abilities.get(Ability.SECCOMP, False)
    verified = await _verified(cli, scratch, seccomp)
    abilities = judge(said, facts, verified=verified)
    if facts.user_namespaces and dialect.trial and dialect.abilities.get(Ability.USER_NAMESPACES, True):
        abilities[Ability.USER_NAMESPACES] = _no_way(closed) if closed else await _user_namespaces(cli, scratch, seccomp)
    if said.abilities.get(Ability.CHECKPOINT):
        found = await checkpoints.criu(cli.settings.env.get("PATH", ""), timeout=cli.settings.timeouts.probe)
        if found.support is Support.SUPPORTED:
            found = await checkpoint_trial.tried(cli, found, scratch, seccomp=seccomp, timeout=cli.settings.timeouts.trial)
        abilities[Ability.CHECKPOINT] = found
    return Findings(RuntimeFeatures(said.version, str(cli.settings.path), dialect.overruled(abilities)), style)


async def _verified(cli: OciCli, scratch: Path, seccomp: bool) -> str:
    if not cli.dialect.trial:
        return "claimed, not tried: its handler's options say that it can't run the trial program"
    return await trial(cli, scratch, seccomp=seccomp, timeout=cli.settings.timeouts.trial)


def _closed(*paths: Path) -> list[str]:
    """Directories at and above ``paths`` that not everybody may pass: root of a user namespace is anybody. Blocks."""
    found = dict.fromkeys(directory for path in paths for directory in (path, *path.parents))
    return [str(directory) for directory in found if directory.exists() and not directory.stat().st_mode & stat.S_IXOTH]


def _no_way(closed: Sequence[str]) -> Feature:
    why = f"root of a user namespace can't pass {', '.join(closed)}: chmod o+x"
    return Feature(Support.UNSUPPORTED, why)


async def _user_namespaces(cli: OciCli, scratch: Path, seccomp: bool) -> Feature:
    """Whether it runs a container in the user namespace of a pod: what it claims is another thing, to make one of its own."""
    try:
        verified = await trial(cli, scratch, seccomp=seccomp, timeout=cli.settings.timeouts.trial, user_namespace=True)
    except (RuntimeFailed, HostError, TimedOut) as exc:
        return Feature(Support.UNSUPPORTED, exc.message)
    return Feature(Support.SUPPORTED, verified)


def _identity(cli: OciCli) -> dict[str, Any]:
    """What must be unchanged for an old answer to hold."""
    return {
        "v": _VERSION,
        "argv": cli.argv("run", *cli.settings.run_args),
        "dialect": str(cli.dialect),
        "criu": _criu(cli.settings.env.get("PATH", "")),
        **probe_cache.surroundings(cli.settings.path),
    }


def _criu(search: str) -> list[Any]:
    """Which criu, and of when: another one may work where the last did not."""
    path = shutil.which("criu", path=search)
    return [] if path is None else [path, os.stat(path).st_mtime_ns]
