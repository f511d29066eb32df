"""What runsc says when it fails, and what that means. Pure.

Sources: messages of runsc 20221219 and 20240729; gVisor pkg/sentry/loader, runsc/boot.
"""

from __future__ import annotations

import re
from collections.abc import Sequence

from bridge.host.runtime_words import NOT_EXECUTABLE_CODE, NOT_FOUND_CODE, START_ERROR_CODE

_NOT_FOUND = re.compile(r"failed to load [^:]*: no such file|error finding executable [^:]*: no such file")
_NOT_EXECUTABLE = re.compile(r"failed to load [^:]*: (?:permission denied|exec format error|is a directory|operation not permitted)")
_ROOT_NETWORK = "network enabled in root network namespace"


def start_code(said: Sequence[str]) -> int:
    """Exit code to report for a process that could not be started: 127 not found, 126 not executable, else 128."""
    words = "\n".join(said)
    if _NOT_EXECUTABLE.search(words):
        return NOT_EXECUTABLE_CODE
    return NOT_FOUND_CODE if _NOT_FOUND.search(words) else START_ERROR_CODE


def mending(said: Sequence[str], version: str, kernel: str) -> str:
    """What mends a known failure of the trial; empty when nothing is known."""
    words = "\n".join(said)
    if _ROOT_NETWORK in words:
        return (
            f"{version} takes every network namespace for the host's own on Linux {kernel} (6.11 and later, gvisor#10704): "
            'install runsc of August 2024 or later, or set options.network to "host" or "none"'
        )
    if "running on goroutine" in words:
        return f"{version} was built with a Go release that its sources don't know, and crashes: install the gVisor project's own build"
    if "Rootless mode not supported" in words:
        return "runsc can't create sandboxes for pods rootless: set options.rootless to false"
    if "/dev/kvm" in words:
        return "options.platform is kvm, which needs /dev/kvm: leave the platform to runsc"
    if "ptrace" in words and "not permitted" in words:
        return "the host forbids ptrace (kernel.yama.ptrace_scope): choose another options.platform"
    return ""
