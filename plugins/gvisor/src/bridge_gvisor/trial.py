"""The trial of a runsc: a throw-away sandbox in a network namespace of its own, in which each verb that pods need is used once.

A runsc that was built for another kernel or by another Go starts well enough and fails later; the kernel, the platform and the
network stack only show together whether pods would run.
"""

from __future__ import annotations

import hashlib
import json
import os
import platform
import shutil
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import anyio
from anyio import to_thread

from bridge.errors import HostError
from bridge.host import cgroups, namespaces, trial_bundle
from bridge.host.files import read_text
from bridge.host.runtime_words import merge
from bridge_gvisor import checkpoint_trial
from bridge_gvisor.runsc import Runsc
from bridge_gvisor.spec import SANDBOX_ID, YOUNG_CAPABILITIES, marks
from bridge_gvisor.words import mending

UNTRIED = "claimed, not tried: there is no trial program for this machine"


@dataclass(frozen=True, slots=True)
class Outcome:
    """``verified`` says how it was tried; ``hook_ran`` whether the startContainer hook did.

    ``all_capabilities``: whether it knows those that Linux 5.8 and 5.9 brought (specs.YOUNG_CAPABILITIES). ``no_checkpoint`` is why
    pods can't be checkpointed and restored, "" where a trial pod was.
    """

    verified: str
    hook_ran: bool = False
    all_capabilities: bool = True
    no_checkpoint: str = ""


async def trial(runsc: Runsc, bundle: Path, version: str) -> Outcome:
    """Try runsc in ``bundle``, which must not be on a noexec mount. Leaves nothing behind.

    Raises RuntimeFailed with what it said, and a hint that mends it where one is known.
    """
    programs = {name: trial_bundle.program(name, platform.machine()) for name in ("wait", "exit", "again")}
    if None in programs.values():
        return Outcome(UNTRIED, no_checkpoint=UNTRIED)
    # The same in each trial of this server, which so ends what a killed one left, but not the trial of another server here.
    name = f"cri-bridge-trial-{hashlib.sha256(os.fsencode(runsc.settings.root)).hexdigest()[:16]}"
    timeouts = runsc.settings.timeouts
    try:
        await _clear(runsc, name, bundle)
        pins = await namespaces.create(bundle / "ns", net=True, ipc=False, uts=False, hostname="", sysctls={})
        await to_thread.run_sync(_make_bundle, bundle, programs, _spec(runsc, name, bundle, pins))
        knows = await _use(runsc, name, bundle, version)
        hook_ran = (bundle / "hook-ran").exists()
        return Outcome("a trial sandbox ran", hook_ran, knows, await checkpoint_trial.fault(runsc, name, bundle))
    finally:
        with anyio.CancelScope(shield=True, deadline=anyio.current_time() + timeouts.delete):
            await _clear(runsc, name, bundle)


async def _use(runsc: Runsc, name: str, bundle: Path, version: str) -> bool:
    """Whether it knows the young capabilities, which an older runsc refuses in so many words."""
    timeout = runsc.settings.timeouts.create
    pid_file = str(bundle / "pid")
    knows = True
    for verb, *args in (
        ("create", "--bundle", str(bundle), "--pid-file", pid_file, name),
        ("start", name),
        ("exec", name, "/exit"),
        ("exec", name, "/again"),
        ("exec", *(f"--cap={each}" for each in YOUNG_CAPABILITIES), name, "/exit"),
        ("ps", name),
        ("events", "--stats", name),
        ("kill", name, "9"),
    ):
        try:
            done = await runsc.run(verb, *args, timeout=timeout)
        except HostError as exc:
            raise HostError(f"{runsc.settings.path}: {exc.message}", errno=exc.errno) from exc
        if done.returncode:
            said = merge((), done.stderr.decode(errors="replace").splitlines())
            if "unknown capability" in "\n".join(said):
                knows = False
                continue
            kernel = (await read_text(Path("/proc/sys/kernel/osrelease"))).strip()
            words = [*said, *await to_thread.run_sync(_panic, bundle)]
            raise runsc.failure(f"trial {verb}", done.returncode, said, hint=mending(words, version, kernel))
    return knows


def _panic(bundle: Path) -> Sequence[str]:
    """What the sandbox's process said when it crashed."""
    try:
        lines = (bundle / "panic.log").read_text(errors="replace").splitlines()
    except OSError:
        return ()
    return [line for line in lines if line.startswith(("panic:", "fatal error:"))]


def _spec(runsc: Runsc, name: str, bundle: Path, pins: Mapping[str, Path]) -> dict[str, Any]:
    systemd = runsc.settings.systemd_cgroup
    spec = trial_bundle.trial_spec(f"system.slice:cri-bridge:{name}" if systemd else f"/{name}", seccomp=runsc.settings.seccomp)
    network = {"type": "network", "path": str(pins["net"])}
    spec["linux"]["namespaces"] = [network if each["type"] == "network" else each for each in spec["linux"]["namespaces"]]
    # The limits are for the trial's small programs: a whole kernel needs more, and on a busy host its share of the CPU.
    spec["linux"]["resources"] = {}
    spec["process"]["args"] = ["/wait"]
    spec["annotations"] = marks("sandbox", name)
    spec["hooks"] = {"startContainer": [{"path": "/bin/sh", "args": ["sh", "-c", f"touch {bundle / 'hook-ran'}"]}]}
    return spec


def _make_bundle(bundle: Path, programs: Mapping[str, bytes | None], spec: dict[str, Any]) -> None:
    _make_one(bundle, programs, spec)
    member = {**spec, "annotations": marks("container", spec["annotations"][SANDBOX_ID]), "hooks": {}}
    _make_one(bundle / checkpoint_trial.MEMBER, programs, {**member, "linux": {**spec["linux"], "cgroupsPath": ""}})


def _make_one(bundle: Path, programs: Mapping[str, bytes | None], spec: dict[str, Any]) -> None:
    exit_program = programs["exit"]
    assert exit_program is not None
    trial_bundle.make_bundle(bundle, exit_program, spec)
    for name, program in programs.items():
        assert program is not None
        path = bundle / "rootfs" / name
        path.write_bytes(program)
        path.chmod(0o755)
    (bundle / "config.json").write_text(json.dumps(spec))


async def _clear(runsc: Runsc, name: str, bundle: Path) -> None:
    """What this trial, or one that was killed, has made."""
    await checkpoint_trial.clear(runsc, name)
    if (runsc.settings.root / f"{name}_sandbox:{name}.state").exists():
        await runsc.run("delete", "--force", name, timeout=runsc.settings.timeouts.delete)
    if not runsc.settings.systemd_cgroup:  # also where a trial that failed half-way had deleted it already
        await to_thread.run_sync(cgroups.remove, f"/{name}")
    await namespaces.remove(bundle / "ns")
    await to_thread.run_sync(lambda: shutil.rmtree(bundle, ignore_errors=True))
