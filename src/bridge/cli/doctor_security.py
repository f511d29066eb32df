"""Doctor's questions about security: SELinux, and published holes of the runtimes that are installed.

Distributions mend old versions without changing their number. What the version suggests is therefore compared with the
change log of the package, and where that can't be read, the finding says so.
"""

from __future__ import annotations

import gzip
import re
import zlib
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from bridge.cli.advisories import Advisory, of, parse
from bridge.cli.findings import Finding, Host, State, finding
from bridge.config import Config
from bridge.core.apparmor import DEFAULT_PROFILE, UNCONFINED
from bridge.host import apparmor, selinux

_PROGRAM = re.compile(r"^(\w+) version (\S+)", re.MULTILINE)


def check(host: Host, config: Config) -> Iterator[Finding]:
    """Every finding about security."""
    yield _selinux(host, config)
    yield _apparmor(host, config.security.apparmor_profile)
    seen: set[Path] = set()
    for handler in config.runtime.handlers.values():
        wanted = handler.options.get("path")
        found = host.executable(wanted) if handler.enabled and isinstance(wanted, str) else None
        if found is not None and found not in seen:
            seen.add(found)
            yield from _runtime(host, found)


def _selinux(host: Host, config: Config) -> Finding:
    mode, wanted = selinux.mode(host.root), config.security.selinux
    if mode is selinux.Mode.DISABLED:
        bad = "disabled, but security.selinux is on: the server won't start"
        mend = "boot with selinux=1 and a policy, or set security.selinux to auto"
        return finding("security", "SELinux", ok=wanted != "on", good="disabled", bad=bad, mend=mend, required=True)
    if wanted == "off":
        mend = "set security.selinux to auto"
        return Finding("security", "SELinux", State.ADVICE, f"{mode}, but pods get no labels: security.selinux is off", mend)
    contexts = selinux.contexts(host.root)
    return finding(
        "security",
        "SELinux",
        ok=contexts is not None,
        good=f"{mode}; pods run as {contexts.process if contexts else ''} with categories of their own",
        bad=f"{mode}, but the policy has no contexts for containers",
        mend="dnf install container-selinux, or apt-get install selinux-policy-default",
        required=wanted == "on",
    )


def _apparmor(host: Host, wanted: str) -> Finding:
    if not apparmor.enabled(host.root):
        return Finding("security", "AppArmor", State.OK, "not enabled on this host")
    if wanted in ("", UNCONFINED):
        mend = "remove security.apparmor_profile from the configuration"
        return Finding("security", "AppArmor", State.ADVICE, "enabled, but containers get no profile by default", mend)
    if wanted in apparmor.loaded_now(host.root):
        return Finding("security", "AppArmor", State.OK, f"enabled; containers run under {wanted}")
    built_in = wanted == DEFAULT_PROFILE
    return finding(
        "security",
        "AppArmor",
        ok=built_in and apparmor.parser(host.root) is not None,
        good=f"enabled; {wanted} is loaded when it is first needed",
        bad="enabled, but without apparmor_parser the default profile can't be loaded: who asks for it is refused"
        if built_in
        else f"security.apparmor_profile: {wanted} is not loaded: who asks for the default is refused",
        mend="apt-get install apparmor, or zypper install apparmor-parser"
        if built_in
        else "apparmor_parser -r its file in /etc/apparmor.d",
    )


def _runtime(host: Host, path: Path) -> Iterator[Finding]:
    said = _PROGRAM.search(host.say([str(path), "--version"]))
    if said is None:
        return
    program, version = said[1], said[2]
    try:
        holes = of(program, parse(version))
    except ValueError:
        yield Finding(
            "security",
            program,
            State.ADVICE,
            f"{path} says version {version}: its holes can't be looked up",
            f"install a released {program}",
        )
        return
    if not holes:
        yield Finding("security", program, State.OK, f"{version}: no published hole is known")
        return
    package = _package(host, path)
    for hole in holes:
        yield _hole(hole, version, package)


def _hole(hole: Advisory, version: str, package: Package | None) -> Finding:
    name = f"{hole.program} {hole.id}"
    if package is not None and package.mends(hole.id):
        return Finding("security", name, State.OK, f"mended by the distribution: the change log of {package} names it")
    if hole.guard:
        return Finding("security", name, State.OK, f"{version} has it, but {hole.guard}")
    detail = f"{hole.risk}. {version} has it upstream, mended in {hole.fixed}"
    if package is None:
        return Finding(
            "security", name, State.ADVICE, f"{detail}; no package owns the binary", f"install {hole.program} {hole.fixed} or newer"
        )
    why = "doesn't name it" if package.changelog else "isn't installed"
    detail += f"; your distribution may have mended {package}, but its change log {why}"
    return Finding(
        "security", name, State.ADVICE, detail, f"ask your distribution about {hole.id}, or install {hole.program} {hole.fixed} or newer"
    )


@dataclass(frozen=True, slots=True)
class Package:
    """The package that a binary came in, and its change log ("" when it isn't there)."""

    name: str
    version: str
    changelog: str

    def __str__(self) -> str:
        return f"{self.name} {self.version}"

    def mends(self, hole: str) -> bool:
        """Whether the change log names ``hole``."""
        return re.search(rf"\b{re.escape(hole)}\b", self.changelog) is not None


def _package(host: Host, path: Path) -> Package | None:
    """Asked of dpkg, then of rpm."""
    # Where / and /usr are one, the package may list either path.
    for where in dict.fromkeys([str(path), f"/usr{path}", str(path).removeprefix("/usr")]):
        owner = host.say(["dpkg-query", "--search", where]).partition(":")[0].strip()
        if owner:
            version = host.say(["dpkg-query", "--show", "--showformat=${Version}", owner]).strip()
            return Package(owner, version, _debian_changelog(host, owner))
    name, _, version = (
        host.say(["rpm", "--query", "--file", "--queryformat=%{NAME} %{VERSION}-%{RELEASE}", str(path)]).strip().partition(" ")
    )
    return Package(name, version, host.say(["rpm", "--query", "--changelog", name])) if version and " " not in version else None


def _debian_changelog(host: Host, package: str) -> str:
    for name in ("changelog.Debian.gz", "changelog.gz"):
        with suppress(OSError, EOFError, zlib.error):
            with gzip.open(host.path(f"/usr/share/doc/{package}/{name}"), "rt", errors="replace") as log:
                return log.read(4 << 20)
    return ""
