"""Doctor's questions about what is added to containers: CDI specs, hooks from directories, base specs, additional devices."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path

from bridge.cli.findings import Finding, Host, State, finding
from bridge.config import Config
from bridge.core import base_spec, cdi, cdi_spec, hooks
from bridge.errors import ConfigError
from bridge.host.watched_files import FoundFile, look


def check(host: Host, config: Config) -> Iterator[Finding]:
    """Every finding about them. What isn't there isn't missing."""
    yield from _cdi(host, config)
    yield from _hooks(host, config)
    yield from _base_specs(host, config)
    for text in config.runtime.additional_devices:
        path = text.partition(":")[0]
        bad = f"{path} does not exist: no container can be made"
        mend = "plug it in, or take it out of runtime.additional_devices"
        yield finding("devices", text, ok=host.path(path).exists(), good=path, bad=bad, mend=mend, required=True)


def _files(host: Host, directories: Sequence[Path], endings: tuple[str, ...]) -> tuple[FoundFile, ...]:
    """As the server finds them, by the paths that it would call them."""
    found = look([host.path(directory) for directory in directories], endings)
    return tuple(
        FoundFile(directories[file.rank] / file.path.relative_to(host.path(directories[file.rank])), file.rank, file.data, file.fault)
        for file in found
    )


def _cdi(host: Host, config: Config) -> Iterator[Finding]:
    directories = config.runtime.cdi_spec_dirs
    devices = cdi.parse_all(_files(host, directories, cdi_spec.ENDINGS))
    yield from _faults("CDI", devices.faults)
    names = sorted(devices.devices)
    shown = ", ".join(names[:20]) + (f" and {len(names) - 20} more" if len(names) > 20 else "")
    yield Finding("devices", "CDI devices", State.OK, shown or f"none in {', '.join(map(str, directories))}")


def _hooks(host: Host, config: Config) -> Iterator[Finding]:
    directories = config.runtime.hooks_dirs
    known = hooks.parse_all(_files(host, directories, hooks.ENDINGS))
    yield from _faults("hooks", known.faults)
    for hook in known.hooks:
        program = Path(hook.hook["path"])
        if "startContainer" in hook.stages and len(hook.stages) == 1:
            continue  # its program is the container's
        if not os.access(host.path(program), os.X_OK):
            words = f"{program} can't be executed: containers that match its conditions can't start"
            yield Finding("hooks", str(hook.path), State.MISSING, words, f"install what brings {program}, or remove {hook.path}")
    names = ", ".join(str(hook.path) for hook in known.hooks)
    yield Finding("hooks", "OCI hooks", State.OK, names or f"none in {', '.join(map(str, directories))}")


def _faults(area: str, faults: Mapping[Path, str]) -> Iterator[Finding]:
    area = "devices" if area == "CDI" else area
    for path, fault in faults.items():
        yield Finding(area, str(path), State.ADVICE, fault, f"mend or remove {path}")


def _base_specs(host: Host, config: Config) -> Iterator[Finding]:
    for name, handler in config.runtime.handlers.items():
        path = handler.base_spec
        if not handler.enabled or path is None:
            continue
        fault = ""
        try:
            base_spec.parse(host.path(path).read_text("utf-8"))
        except (OSError, UnicodeDecodeError) as exc:
            fault = str(getattr(exc, "strerror", None) or exc)
        except ConfigError as exc:
            fault = exc.message
        yield finding(
            "runtimes",
            f"base spec of {name}",
            ok=not fault,
            good=str(path),
            bad=f"{path}: {fault}; the handler is disabled",
            mend=f"mend {path}, or unset runtime.handlers.{name}.base_spec",
            required=name == config.runtime.default_handler,
        )
