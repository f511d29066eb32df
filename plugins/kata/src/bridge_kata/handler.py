"""Turns the options of one handler into the settings of a kit, and opens it."""

from __future__ import annotations

import os
import shutil
from collections.abc import AsyncIterator, Mapping
from contextlib import AbstractAsyncContextManager, asynccontextmanager
from dataclasses import replace
from pathlib import Path
from typing import Protocol

from bridge.errors import ConfigError
from bridge.ports.host import HostContext
from bridge.ports.runtime import RuntimeBackend, SandboxSpec
from bridge_kata import probe, steering
from bridge_kata.backend import KataBackend, Settings
from bridge_kata.options import KataOptions
from bridge_kata.probe import KataConfig
from bridge_kata.specs import Choices

_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin:/opt/kata/bin"
_BINARIES = {"shim": "containerd-shim-kata-v2", "cli": "kata-runtime"}


def find_binary(name: str, search: str) -> Path:
    """The absolute path of ``name``. Raises ConfigError saying where it was sought."""
    found = shutil.which(name, path=search)
    if found is None:
        where = "" if "/" in name else f" in {search}"
        raise ConfigError(f"options.path: there is no executable {name!r}{where}; install Kata Containers or set the path")
    if not os.path.isabs(found):
        raise ConfigError(f"options.path: {name!r} must be an absolute path or a bare name")
    return Path(found)


def choices(options: KataOptions) -> Choices:
    """The operator's choices for every pod."""
    given = {
        **steering.chosen("hypervisor", options.hypervisor),
        **steering.chosen("agent", options.agent),
        **steering.chosen("runtime", options.runtime),
    }
    return Choices(given, options.static_sizing, options.guest_seccomp)


def check_enabled(chosen: Choices, config: KataConfig | None) -> None:
    """Raises ConfigError for a setting that Kata would refuse with every pod."""
    if config is None or config.enabled is None:
        return
    refused = steering.not_enabled(chosen.annotations, config.enabled)
    if refused:
        names = ", ".join(f"options.hypervisor.{name}" for name in refused)
        raise ConfigError(f"{names}: Kata takes no such annotation; add it to enable_annotations in {config.path}")


def timed(options: KataOptions, context: HostContext) -> HostContext:
    """The context with this handler's deadlines."""
    timeouts = replace(
        context.timeouts,
        create=options.boot_timeout,
        start=options.start_timeout,
        exec=options.exec_timeout,
        kill=options.kill_timeout,
        delete=options.delete_timeout,
    )
    return replace(context, timeouts=timeouts)


def open_handler(name: str, options: KataOptions, context: HostContext) -> AbstractAsyncContextManager[RuntimeBackend]:
    """Open handler ``name``. Raises ConfigError, Unsupported, RuntimeFailed or HostError with why Kata can't be used here."""
    return _opened(name, options, timed(options, context))


@asynccontextmanager
async def _opened(name: str, options: KataOptions, context: HostContext) -> AsyncIterator[RuntimeBackend]:
    search = os.environ.get("PATH", _PATH)
    env = {"PATH": search, **options.env}
    path = find_binary(options.path or _BINARIES[options.flavour], search)
    await probe.check_devices(options.required_devices)
    config = None if options.config_path is None else await probe.read_config(options.config_path)
    chosen = choices(options)
    check_enabled(chosen, config)
    text = await probe.version(name, path, env, context.timeouts.probe)
    probe.check_generation(options.generation, text)
    await probe.check_syslog(text)
    kit = _kit(options.flavour)
    async with kit.open_inner(name, path, env, options, context, text) as inner:
        settings = Settings(
            choices=chosen,
            features=probe.features(inner.features, text, options.allowed_annotations, config),
            stop_timeout=options.delete_timeout,
            bundle=kit.bundle,
            timeouts=context.timeouts,
            fixed_size=config is not None and config.static_sizing,
            refuse=f"runtime.handlers.{name}.options.allowed_annotations" if options.refuse_other_annotations else "",
        )
        yield KataBackend(inner, settings)


class _Kit(Protocol):
    """One way to drive Kata: opens a backend, and tells where it puts the bundle of a pod's sandbox container."""

    def open_inner(
        self, name: str, path: Path, env: Mapping[str, str], options: KataOptions, context: HostContext, version: str, /
    ) -> AbstractAsyncContextManager[RuntimeBackend]: ...
    def bundle(self, spec: SandboxSpec, /) -> Path: ...


def _kit(flavour: str) -> _Kit:
    """Each is imported for those who use it: a wire format takes longer to load than all else here."""
    if flavour == "cli":
        from bridge_kata import cli

        return cli
    from bridge_kata import shim

    return shim
