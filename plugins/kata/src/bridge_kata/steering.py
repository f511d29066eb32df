"""Annotations that steer Kata: which a pod may set, and how the operator's own choices become some. Pure.

Kata takes from annotations what else stands in its configuration, also paths of programs that it runs as root on the host, so
only those that change nothing but the guest are taken from every pod. Kata itself refuses hypervisor annotations that its
``enable_annotations`` does not name, and nothing else. Source: Kata's how-to "sandbox config with annotations" and pkg/oci.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase

from bridge.errors import Denied

PREFIX = "io.katacontainers."
SECTIONS = ("hypervisor", "agent", "runtime")
Setting = bool | int | float | str

SAFE = (
    "io.katacontainers.config.agent.cdh_api_timeout*",
    "io.katacontainers.config.agent.container_pipe_size",
    "io.katacontainers.config.agent.policy",
    "io.katacontainers.config.hypervisor.cc_init_data",
    "io.katacontainers.config.hypervisor.default_maxvcpus",
    "io.katacontainers.config.hypervisor.default_max_vcpus",
    "io.katacontainers.config.hypervisor.default_memory",
    "io.katacontainers.config.hypervisor.default_vcpus",
    "io.katacontainers.config.hypervisor.rx_rate_limiter_max_rate",
    "io.katacontainers.config.hypervisor.tx_rate_limiter_max_rate",
    "io.katacontainers.config.runtime.create_container_timeout",
    "io.katacontainers.container.resource.swappiness",
    "io.katacontainers.container.resource.swap_in_bytes",
)
"""Sizes of the machine, which its pod's cgroup bounds on the host; time-outs; limits; and what is measured into a confidential guest."""


def chosen(section: str, settings: Mapping[str, Setting]) -> dict[str, str]:
    """The operator's settings of one section as annotations, in the words that Kata parses: ``true``, ``2``, ``1.5``."""
    return {f"{PREFIX}config.{section}.{key}": _word(value) for key, value in settings.items()}


def _word(value: Setting) -> str:
    return str(value).lower() if isinstance(value, bool) else str(value)


def refuse_withheld(asked: Iterable[str], passed: Mapping[str, str], option: str) -> None:
    """Raise Denied naming Kata's annotations that the pod asked for and that were not passed on."""
    missing = sorted(key for key in asked if key.startswith(PREFIX) and key not in passed)
    if missing:
        names = ", ".join(f"config.annotations[{key!r}]" for key in missing)
        raise Denied(f"{names}: not in {option}, and refuse_other_annotations is set")


def not_enabled(wanted: Iterable[str], enabled: Iterable[str]) -> list[str]:
    """The hypervisor annotations among ``wanted`` that Kata's ``enable_annotations`` has no pattern for.

    Its patterns are Go's regular expressions, found anywhere in the name; where they are more than a name, Kata is left to judge.
    """
    patterns = tuple(enabled)
    top = f"{PREFIX}config.hypervisor."
    if any(set(pattern) & set(".*+?[](){}|^$\\") for pattern in patterns):
        return []
    names = (key.removeprefix(top) for key in wanted if key.startswith(top))
    return sorted(name for name in names if not any(pattern in name for pattern in patterns))


def permitted(patterns: Iterable[str], key: str) -> bool:
    """Whether one of ``patterns`` lets ``key`` through, as core will judge: a glob if it has a wildcard, else a prefix."""
    return any(fnmatchcase(key, each) if set("*?[") & set(each) else key.startswith(each) for each in patterns)
