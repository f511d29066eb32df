"""Which AppArmor profile is meant, and the text of our own."""

from __future__ import annotations

import shutil
import subprocess

import pytest

from bridge.core.apparmor import DEFAULT_PROFILE, default_text, wanted
from bridge.core.model import ProfileType, SecurityProfile


@pytest.mark.parametrize(
    ("request_", "name"),
    [
        (None, "the-default"),
        (SecurityProfile(), "the-default"),
        (SecurityProfile(ProfileType.UNCONFINED), "unconfined"),
        (SecurityProfile(ProfileType.LOCALHOST, "strict"), "strict"),
    ],
)
def test_what_is_meant(request_: SecurityProfile | None, name: str) -> None:
    assert wanted(request_, "the-default") == name


def test_the_default_text() -> None:
    text = default_text(DEFAULT_PROFILE, ("my-daemon",), abi=True, tunables=True, base=True)
    lines = [line.strip() for line in text.splitlines()]
    assert lines[0] == "abi <abi/3.0>,"
    assert "include <tunables/global>" in lines
    assert f"profile {DEFAULT_PROFILE} flags=(attach_disconnected, mediate_deleted) {{" in lines
    assert "deny mount," in lines
    for label in ("unconfined", "runc", "crun", "my-daemon"):
        assert f"signal (receive) peer={label}," in lines
    assert text.count("{") == text.count("}")


def test_a_host_without_policy_files() -> None:
    text = default_text("x", (), abi=False, tunables=False, base=False)
    assert "include" not in text
    assert text.startswith("@{PROC}=/proc/\n")


@pytest.mark.skipif(shutil.which("apparmor_parser") is None, reason="apparmor_parser is not installed")
def test_the_parser_takes_it() -> None:
    text = default_text(DEFAULT_PROFILE, ("unconfined",), abi=False, tunables=False, base=False)
    done = subprocess.run(["apparmor_parser", "-Q", "-K", "-S"], input=text.encode(), capture_output=True, timeout=60)
    assert done.returncode == 0, done.stderr
