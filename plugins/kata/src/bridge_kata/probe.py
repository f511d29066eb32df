"""Whether Kata can work here, and what its pods can do: asked of the binary, of its configuration file and of the host.

No machine is booted for it, which would take a server's start seconds for each handler. Sources: Kata's docs/Limitations.md
and its configuration.toml.
"""

from __future__ import annotations

import os
import re
import tomllib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from anyio import to_thread

from bridge.errors import ConfigError, RuntimeFailed, Unsupported
from bridge.host import process
from bridge.ports.runtime import Ability, Feature, RuntimeFeatures, Support

_SYSLOG = Path("/dev/log")
_OLD = re.compile(r"version: 1\.|kata-runtime\s*: 1\.")
_OWN_KERNEL = "the pod has a kernel of its own"
_IN_GUEST = "by Kata's agent in the guest"
_LACKING = {
    Ability.APPARMOR: "profiles are loaded in the host's kernel, and the pod has one of its own",
    Ability.SELINUX: "labels are the host's kernel's, and the pod has one of its own",
    Ability.USER_NAMESPACES: "Kata maps no ids of a pod; its root is none of the host's anyway",
    Ability.IDMAPPED_MOUNTS: "Kata's agent does not know them",
    Ability.RECURSIVE_READ_ONLY: "Kata's agent does not know it; the server gives it copies of such mounts",
    Ability.CHECKPOINT: "Kata has none",
    Ability.NET_DEVICES: "the guest has its own devices",
    Ability.RDT_SCHEMATA: "the host's classes don't reach into a guest",
    Ability.HOST_NETWORK: "a machine has a network card of its own",
    Ability.HOST_NAMESPACES: _OWN_KERNEL,
    Ability.TARGET_PID: "Kata knows the PID namespaces of one container and of the pod, no others",
    Ability.START_CONTAINER_HOOKS: "Kata runs hooks on the node",
    Ability.SECCOMP_NOTIFY: "the guest's kernel can't ask a program of the node",
    Ability.HOST_DEVICES: _OWN_KERNEL,
    Ability.MOUNT_PROPAGATION: "what is mounted on the node later does not reach a guest",
}
_PRESENT = (
    *(Ability.EXEC, Ability.TTY, Ability.SHARED_PID, Ability.UPDATE, Ability.CONTAINER_LIMITS),
    *(Ability.SYSTEMD_CGROUP, Ability.SYSCTLS, Ability.DEVICES),
)


@dataclass(frozen=True, slots=True)
class KataConfig:
    """What matters to the server of a configuration.toml. ``enabled`` None where the file does not say which annotations are."""

    path: Path
    hypervisor: str = ""
    enabled: tuple[str, ...] | None = None
    guest_seccomp: bool = True
    static_sizing: bool = False


def parse_config(path: Path, text: str) -> KataConfig:
    """Raises ConfigError naming the file."""
    try:
        document = tomllib.loads(text)
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"options.config_path: {path} is not TOML: {exc}") from exc
    runtime, hypervisors = _table(document, "runtime"), _table(document, "hypervisor")
    names = [str(runtime.get("hypervisor_name", "")), *hypervisors]
    name = next((each for each in names if each in hypervisors), "")
    enabled = _table(hypervisors, name).get("enable_annotations")
    return KataConfig(
        path=path,
        hypervisor=name,
        enabled=tuple(str(each) for each in enabled) if isinstance(enabled, list) else None,
        guest_seccomp=runtime.get("disable_guest_seccomp") is not True,
        static_sizing=runtime.get("static_sandbox_resource_mgmt") is True,
    )


def _table(source: Mapping[str, Any], key: str) -> Mapping[str, Any]:
    found = source.get(key)
    return found if isinstance(found, dict) else {}


async def read_config(path: Path) -> KataConfig:
    """Raises ConfigError saying what is wrong with the file."""
    try:
        text = await to_thread.run_sync(path.read_text)
    except (OSError, UnicodeError) as exc:
        why = exc.strerror if isinstance(exc, OSError) else "it is not text"
        raise ConfigError(f"options.config_path: {path} can't be read: {why}") from exc
    return parse_config(path, text)


async def check_devices(paths: Sequence[Path]) -> None:
    """Raises Unsupported naming the first device that can't be opened."""
    for path in paths:
        try:
            await to_thread.run_sync(_open, path)
        except OSError as exc:
            advice = "; is virtualization enabled, and the module loaded?" if path.name == "kvm" else ""
            raise Unsupported(f"options.required_devices: {path} can't be opened: {exc.strerror}{advice}") from exc


def _open(path: Path) -> None:
    os.close(os.open(path, os.O_RDWR | os.O_CLOEXEC))


async def version(handler: str, path: Path, env: Mapping[str, str], timeout: float) -> str:
    """The first line of ``--version``. Raises RuntimeFailed, TimedOut, HostError."""
    done = await process.run([str(path), "--version"], env=env, timeout=timeout)
    text = done.stdout.decode(errors="replace").strip()
    if done.returncode or not text:
        said = done.stderr.decode(errors="replace").splitlines()[-5:]
        raise RuntimeFailed(handler=handler, verb="--version", exit_code=done.returncode, log_tail=said)
    return text.partition("\n")[0].strip()


def is_old(text: str) -> bool:
    """Whether a version line is that of Kata 1.x."""
    return _OLD.search(text) is not None


async def check_syslog(text: str) -> None:
    """Raises Unsupported when Kata 1.x could not log: it fails then, whatever it was asked for."""
    if is_old(text) and not await to_thread.run_sync(_SYSLOG.exists):
        raise Unsupported(f"Kata 1.x writes to syslog and fails without {_SYSLOG}: run a syslog daemon or journald")


def check_generation(wanted: str, text: str) -> None:
    """Raises ConfigError when the binary's version line tells of the other shim than the operator wants."""
    found = "rust" if "(rust)" in text.lower() else "go"
    if wanted not in ("auto", found):
        raise ConfigError(f"options.generation is {wanted!r}, but {text!r} is the {found} shim: set options.path to the other one")


def features(inner: RuntimeFeatures, text: str, annotations: Sequence[str], config: KataConfig | None) -> RuntimeFeatures:
    """What pods of this handler can do: what the kit's probe found, as a guest changes it."""
    found = {**inner.abilities}
    found |= {ability: Feature(Support.SUPPORTED, _IN_GUEST) for ability in _PRESENT}
    found |= {ability: Feature(Support.UNSUPPORTED, why) for ability, why in _LACKING.items()}
    found[Ability.PORT_FORWARD] = Feature(Support.EMULATED, "by the pod's address: what listens on localhost of the guest can't be reached")
    found[Ability.SECCOMP] = Feature(Support.SUPPORTED, "in the guest, unless Kata's disable_guest_seccomp is set")
    if config is not None:
        where = f"disable_guest_seccomp in {config.path}"
        found[Ability.SECCOMP] = (
            Feature(Support.SUPPORTED, f"in the guest: no {where}")
            if config.guest_seccomp
            else Feature(Support.UNSUPPORTED, f"{where} is set, so that profiles are not passed to the guest")
        )
    return replace(inner, version=text, abilities=found, annotations=tuple(annotations))
