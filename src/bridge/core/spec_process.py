"""The OCI ``process`` object: arguments, environment, working directory, user. Sources: CRI v1 ContainerConfig, OCI config.md."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from bridge.core import security
from bridge.core.entities import User
from bridge.core.model import ContainerConfig
from bridge.core.spec_inputs import ContainerInputs, SpecSettings
from bridge.core.spec_resources import oom_score_adj
from bridge.errors import InvalidRequest
from bridge.host.facts import HostFacts
from bridge.ports.images import ImageConfig

DEFAULT_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
_TERM = "xterm"

_DESCRIPTOR_PATH = re.compile(r"/+proc/+(self|thread-self|\d+)(/+task/+\d+)?/+fd(/|$)")


def build(inputs: ContainerInputs, facts: HostFacts, settings: SpecSettings) -> dict[str, Any]:
    """The container's first process. Raises InvalidRequest naming the field."""
    config, request = inputs.config, inputs.config.security
    process: dict[str, Any] = {
        "terminal": config.tty,
        "user": user_object(inputs.user),
        "args": arguments(config, inputs.image.config),
        "env": environment(inputs, facts, settings.default_env),
        "cwd": working_dir(config, inputs.image.config),
        "capabilities": security.capabilities(request, facts, settings.default_capabilities),
        "noNewPrivileges": request.no_new_privs,
        "oomScoreAdj": oom_score_adj(config.resources.oom_score_adj if config.resources else 0, facts),
    }
    if facts.nofile is not None:
        # Said outright: the monitor, which is the runtime's parent, raises its own for the pipes it holds.
        soft, hard = facts.nofile
        process["rlimits"] = [{"type": "RLIMIT_NOFILE", "soft": soft, "hard": hard}]
    if inputs.confinement.apparmor and not request.privileged:
        process["apparmorProfile"] = inputs.confinement.apparmor
    return process


def user_object(user: User) -> dict[str, Any]:
    """OCI process.user."""
    return {"uid": user.uid, "gid": user.gid, "additionalGids": list(user.additional_gids)}


def arguments(config: ContainerConfig, image: ImageConfig) -> list[str]:
    """argv by the CRI's rule: command replaces entrypoint and cmd, args replace cmd."""
    # An entrypoint of one empty string is how an image takes back the one it was built on (Dockerfile's ENTRYPOINT [""]).
    entrypoint = () if image.entrypoint == ("",) else image.entrypoint
    if config.command:
        argv = [*config.command, *config.args]
    elif config.args:
        argv = [*entrypoint, *config.args]
    else:
        argv = [*entrypoint, *image.cmd]
    if not argv:
        raise InvalidRequest("neither the request nor the image says what to run", field="config.command")
    if not argv[0]:
        source = "config.command" if config.command else "config.args" if config.args and not entrypoint else "the image's command"
        raise InvalidRequest("begins with an empty string, which is no program", field=source)
    _no_nul(argv, "config.command")
    return argv


def environment(inputs: ContainerInputs, facts: HostFacts, default_env: Sequence[str]) -> list[str]:
    """ "KEY=value" entries, later sources winning by key: ours, the operator's, the image's, the request's; then HOME."""
    config = inputs.config
    env = {"PATH": DEFAULT_PATH}
    hostname = inputs.sandbox.hostname or inputs.sandbox.config.hostname or facts.hostname
    if hostname:
        env["HOSTNAME"] = hostname
    if config.tty:
        env["TERM"] = _TERM
    env.update(pairs(default_env))
    env.update(pairs(inputs.image.config.env))
    for index, (key, value) in enumerate(config.envs):
        if not key or "=" in key or "\0" in key or "\0" in value:
            raise InvalidRequest(f"{key!r} can't be an environment variable", field=f"config.envs[{index}]")
        env[key] = value
    env.setdefault("HOME", inputs.home)
    return [f"{key}={value}" for key, value in env.items()]


def pairs(entries: Iterable[str]) -> Iterable[tuple[str, str]]:
    """Entries without "=" set nothing, as in Docker images that only name a variable."""
    for entry in entries:
        key, found, value = entry.partition("=")
        if found and key:
            yield key, value


def working_dir(config: ContainerConfig, image: ImageConfig) -> str:
    """The absolute working directory. One below a process's descriptors could reach the host (CVE-2024-21626)."""
    path = config.working_dir or image.working_dir or "/"
    field = working_dir_field(config)
    if not path.startswith("/") and not config.working_dir:
        path = "/" + path
    if not path.startswith("/") or "\0" in path:
        raise InvalidRequest(f"{path!r} is not an absolute path", field=field)
    check_working_dir(path, field)
    return path


def working_dir_field(config: ContainerConfig) -> str:
    """Who named the working directory."""
    return "config.working_dir" if config.working_dir else "image working_dir"


def check_working_dir(path: str, field: str) -> None:
    """Raises InvalidRequest when ``path`` lies among a process's descriptors."""
    if _DESCRIPTOR_PATH.match(path):
        raise InvalidRequest(f"{path!r} lies among a process's descriptors", field=field)


def _no_nul(values: Iterable[str], field: str) -> None:
    if any("\0" in value for value in values):
        raise InvalidRequest("holds a NUL byte", field=field)


def for_exec(spec: Mapping[str, Any], argv: Sequence[str], tty: bool) -> dict[str, Any]:
    """The process object of an exec: the container's own identity and limits, other arguments and terminal."""
    if not argv or not argv[0]:
        raise InvalidRequest("is empty", field="cmd")
    _no_nul(argv, "cmd")
    process = dict(spec["process"])
    process["args"] = list(argv)
    process["terminal"] = tty
    env = list(process.get("env", ()))
    if tty and not any(entry.startswith("TERM=") for entry in env):
        env.append(f"TERM={_TERM}")
    process["env"] = env
    return process
