"""Finds out what a handler's runsc can really do here: its verbs and flags, and a trial sandbox.

The answer is kept under the state root (gone at reboot) for the same binary and options, so that a restart of the server runs
nothing.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge import log, probe_cache
from bridge.oci.claims import version_line
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support
from bridge_gvisor.forwarding import VERB as PORT_FORWARD
from bridge_gvisor.runsc import Runsc, RunscSettings
from bridge_gvisor.trial import Outcome, trial

_logger = log.get("gvisor.probe")
_VERSION = 4
_VERB = re.compile(r"^\s+([a-z][a-z-]+)\s{2,}\S", re.MULTILINE)
_OWN_KERNEL = "the sandbox has a kernel of its own"


@dataclass(frozen=True, slots=True)
class Findings:
    """What the probe of one binary found; ``verbs`` are those that its help lists, ``all_capabilities`` as in trial.Outcome."""

    features: RuntimeFeatures
    verbs: frozenset[str]
    all_capabilities: bool = True


async def probe(runsc: Runsc, *, cache: Path, scratch: Path) -> Findings:
    """Probe ``runsc``. Raises RuntimeFailed or HostError with the reason why it can't be used here."""
    identity = await to_thread.run_sync(_identity, runsc)
    known = await to_thread.run_sync(probe_cache.load, cache, identity)
    if known is not None:
        return Findings(known[0], frozenset(known[1]["verbs"]), known[1]["all_capabilities"])
    version = version_line(await runsc.cli.version())
    told = await runsc.run("help", timeout=runsc.settings.timeouts.probe)
    verbs = frozenset(_VERB.findall((told.stdout + told.stderr).decode(errors="replace")))
    outcome = await trial(runsc, scratch, version)
    features = RuntimeFeatures(version, str(runsc.settings.path), judge(runsc.settings, verbs, outcome))
    found = Findings(features, verbs, outcome.all_capabilities)
    keep = partial(probe_cache.save, cache, identity, features, verbs=sorted(verbs), all_capabilities=outcome.all_capabilities)
    await to_thread.run_sync(keep)
    _logger.info("handler %s: %s at %s, network %s", runsc.settings.handler, version, runsc.settings.path, runsc.settings.network)
    return found


def judge(settings: RunscSettings, verbs: frozenset[str], outcome: Outcome) -> dict[Ability, Feature]:
    """Each ability, with what proved it or why it is missing."""
    there, hosts_stack = outcome.verified, settings.network == "host"
    found = {ability: Feature(Support.SUPPORTED, there) for ability in (Ability.EXEC, Ability.TTY, Ability.STATS)}
    found[Ability.SHARED_PID] = Feature(Support.SUPPORTED, "the sandbox's own")
    found[Ability.TARGET_PID] = Feature(Support.SUPPORTED, "by the namespace's name, within the sandbox")
    found[Ability.PORT_FORWARD] = _port_forward(verbs, hosts_stack)
    found |= {ability: Feature(Support.UNSUPPORTED, why) for ability, why in _missing(settings, verbs).items()}
    if hosts_stack:
        found[Ability.HOST_NETWORK] = Feature(Support.SUPPORTED, 'options.network is "host"')
    if settings.seccomp:
        why = f"{there} with a profile, by --oci-seccomp: a container's own processes have it, those that exec starts don't"
        found[Ability.SECCOMP] = Feature(Support.EMULATED, why)
    found[Ability.CHECKPOINT] = _checkpoint(outcome)
    if outcome.hook_ran:
        found[Ability.START_CONTAINER_HOOKS] = Feature(Support.SUPPORTED, "the trial's hook ran")
    if settings.systemd_cgroup:
        found[Ability.SYSTEMD_CGROUP] = Feature(Support.SUPPORTED, there)
    return found


def _checkpoint(outcome: Outcome) -> Feature:
    if outcome.no_checkpoint:
        return Feature(Support.UNSUPPORTED, outcome.no_checkpoint)
    return Feature(Support.EMULATED, "of whole pods alone, by CheckpointPod: a trial pod was checkpointed and restored")


def _port_forward(verbs: frozenset[str], hosts_stack: bool) -> Feature:
    if hosts_stack:
        return Feature(Support.SUPPORTED, "through the pod's network namespace, whose stack the sandbox uses")
    if PORT_FORWARD in verbs:
        return Feature(Support.SUPPORTED, "port-forward --stream, which ends a connection with the first of its halves")
    return Feature(Support.EMULATED, f"to the pod's address, not its localhost: this runsc has no {PORT_FORWARD}")


def _missing(settings: RunscSettings, verbs: frozenset[str]) -> Mapping[Ability, str]:
    whole = "it would act on the sandbox, and so on the pod, as a whole"
    update = "runsc limits the sandbox as a whole, by the pod's cgroup" + ("" if "update" in verbs else "; this one has no verb for it")
    return {
        Ability.HOST_NETWORK: f"options.network is {settings.network!r}: such a pod would not be in the node's network",
        Ability.HOST_NAMESPACES: f"{_OWN_KERNEL}, where the node's processes and IPC objects are not",
        Ability.SYSCTLS: f"{_OWN_KERNEL}, which takes no sysctls of the pod from runsc",
        Ability.MOUNT_PROPAGATION: f"{_OWN_KERNEL}, from and to which mounts don't spread",
        Ability.DEVICES: f"{_OWN_KERNEL}, which has no drivers for the node's devices",
        Ability.HOST_DEVICES: f"{_OWN_KERNEL}, which has no drivers for the node's devices",
        Ability.START_CONTAINER_HOOKS: "the startContainer hook of a trial sandbox did not run",
        Ability.SECCOMP: "options.oci_seccomp is off: what protects the node is the sandbox's own kernel and the filter around that",
        Ability.SECCOMP_NOTIFY: f"{_OWN_KERNEL}, which tells no other process of a system call",
        Ability.APPARMOR: "runsc ignores AppArmor profiles: a pod's processes are none of the node's",
        Ability.SELINUX: "runsc ignores SELinux labels: a pod's processes are none of the node's",
        Ability.USER_NAMESPACES: "runsc joins no user namespace that was made before",
        Ability.RECURSIVE_READ_ONLY: "runsc knows no such mounts",
        Ability.IDMAPPED_MOUNTS: "runsc knows no such mounts",
        Ability.SYSTEMD_CGROUP: "the handler's cgroup driver is cgroupfs: not tried",
        Ability.UPDATE: update,
        Ability.CONTAINER_LIMITS: "runsc limits the sandbox as a whole, by the pod's cgroup",
        Ability.PAUSE: whole,
        Ability.NET_DEVICES: f"{_OWN_KERNEL}, which has no drivers for the node's devices",
        Ability.RDT_SCHEMATA: "runsc knows no resource director",
    }


def _identity(runsc: Runsc) -> dict[str, Any]:
    """What must be unchanged for an old answer to hold."""
    return {
        "v": _VERSION,
        "argv": runsc.argv("create"),
        "seccomp": runsc.settings.seccomp,
        **probe_cache.surroundings(runsc.settings.path),
    }
