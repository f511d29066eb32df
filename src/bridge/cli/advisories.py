"""Published holes of the runtimes: which upstream versions have them, what is at risk, and what this server does about it.

Facts of the projects' security advisories and change logs (opencontainers/runc, containers/crun, google/gvisor). A table for
the doctor; docs/security.md says which holes are the server's own to keep shut.
"""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass

Version = tuple[int, int, int, int]
"""Major, minor, patch and release candidate; a release counts as a candidate that none comes after."""
_RELEASE = 1 << 30
_NUMBERS = re.compile(r"(\d+)\.(\d+)(?:\.(\d+))?(?:-rc\.?(\d+))?")
_GVISOR = re.compile(r"(20\d{6})(?:\.(\d+))?")


@dataclass(frozen=True, slots=True)
class Advisory:
    """One hole of ``program``, in versions from ``first`` (inclusive, "" for the oldest) to ``fixed`` (exclusive) of each range.

    ``guard`` says what keeps it from being used through this server; "" when nothing does.
    """

    id: str
    program: str
    risk: str
    ranges: Sequence[tuple[str, str]]
    guard: str = ""

    def affects(self, version: Version) -> bool:
        """Whether upstream's ``version`` has it."""
        return any(parse(first or "0.0") <= version < parse(fixed) for first, fixed in self.ranges)

    @property
    def fixed(self) -> str:
        """The versions that mend it, oldest branch first."""
        return ", ".join(fixed for _, fixed in self.ranges)


_NOVEMBER_2025 = (("", "1.2.8"), ("1.3.0-rc.1", "1.3.3"), ("1.4.0-rc.1", "1.4.0-rc.3"))
_NO_DEV_LINK = "this server refuses images whose /dev is no directory"

ADVISORIES: Sequence[Advisory] = (
    Advisory("CVE-2019-5736", "runc", "a container can overwrite the runtime's binary on the host", [("", "1.0.0-rc7")]),
    Advisory("CVE-2019-16884", "runc", "an image can keep AppArmor and SELinux labels from being set", [("", "1.0.0-rc9")]),
    Advisory("CVE-2019-19921", "runc", "containers that share a volume can get out of their labels", [("", "1.0.0-rc10")]),
    Advisory("CVE-2021-30465", "runc", "containers that share a volume can mount host directories", [("", "1.0.0-rc95")]),
    Advisory(
        "CVE-2022-29162",
        "runc",
        "exec --cap gives inheritable capabilities",
        [("", "1.1.2")],
        "this server never passes --cap, and its own sets are empty",
    ),
    Advisory("CVE-2023-27561", "runc", "an image or volume whose /proc is a link escapes its labels", [("1.0.0-rc95", "1.1.5")]),
    Advisory("CVE-2023-28642", "runc", "an image whose /proc is a link escapes AppArmor and SELinux", [("", "1.1.5")]),
    Advisory("CVE-2024-21626", "runc", "a container can reach the host through a leaked descriptor", [("1.0.0-rc93", "1.1.12")]),
    Advisory(
        "CVE-2024-45310",
        "runc",
        "containers that share a volume can make empty files on the host",
        [("", "1.1.14"), ("1.2.0-rc.1", "1.2.0-rc.3")],
    ),
    Advisory("CVE-2025-31133", "runc", "a container that replaces /dev/null gets a masked path writable: host takeover", _NOVEMBER_2025),
    Advisory("CVE-2025-52565", "runc", "a container that replaces its pty gets a path of /proc writable: host takeover", _NOVEMBER_2025),
    Advisory("CVE-2025-52881", "runc", "containers that share a volume redirect writes to /proc: host takeover", _NOVEMBER_2025),
    Advisory(
        "CVE-2026-41579",
        "runc",
        "an image whose /dev is a link has files made or removed on the host",
        [("", "1.3.6"), ("1.4.0-rc.1", "1.4.3"), ("1.5.0-rc.1", "1.5.0-rc.3")],
        _NO_DEV_LINK,
    ),
    Advisory("CVE-2019-16884", "crun", "an image can keep AppArmor and SELinux labels from being set", [("", "0.10")]),
    Advisory("CVE-2019-18837", "crun", "an image with links escapes its root file system", [("", "0.10.5")]),
    Advisory("CVE-2022-27650", "crun", "an exec gets inheritable capabilities", [("", "1.4.4")], "this server passes execs empty sets"),
    Advisory(
        "CVE-2025-24965",
        "crun",
        "an image run by the krun handler writes a file on the host",
        [("", "1.20")],
        "pods can't choose that handler unless the operator allows run.oci. annotations",
    ),
    Advisory("CVE-2026-30892", "crun", "exec -u may run as the wrong user", [("", "1.27")], "this server never passes -u"),
    Advisory("CVE-2026-47766", "crun", "an image whose /dev is a link has devices made on the host", [("", "1.28")], _NO_DEV_LINK),
    Advisory("CVE-2018-16359", "runsc", "a container can rename files of the host", [("", "20180823.0")]),
    Advisory("CVE-2023-7258", "runsc", "a container that may mount can end its sandbox", [("", "20231204.0")]),
    Advisory("CVE-2025-2713", "runsc", "a program with file capabilities reads files it may not", [("", "20240325.0")]),
)
"""Oldest first for each program. Ranges begin anew where a branch was mended later than an older one."""


def parse(text: str) -> Version:
    """The upstream version in "runc version 1.1.5+ds1", "1.0.0-rc95", "1.2.0-rc.3" or "release-20240325.0".

    What a distribution appends is left out. Raises ValueError when there is none.
    """
    dated = _GVISOR.search(text)
    if dated is not None:
        return int(dated[1]), int(dated[2] or 0), 0, _RELEASE
    found = _NUMBERS.search(text)
    if found is None:
        raise ValueError(f"no version in {text!r}")
    return int(found[1]), int(found[2]), int(found[3] or 0), int(found[4]) if found[4] else _RELEASE


def of(program: str, version: Version) -> list[Advisory]:
    """The holes of ``program`` in ``version``."""
    return [each for each in ADVISORIES if each.program == program and each.affects(version)]
