"""Stored credentials: which entry is for which repository, and helpers that answer, refuse or hang."""

from __future__ import annotations

import base64
import json
from pathlib import Path

import pytest

from bridge.errors import ConfigError
from bridge.images import auth_files
from bridge.images.auth import Credentials
from bridge.images.auth_files import AuthFiles


def encoded(text: str) -> dict[str, str]:
    return {"auth": base64.b64encode(text.encode()).decode()}


def test_the_longest_key_wins() -> None:
    table = {"auths": {"q.io": encoded("host:1"), "q.io/team": encoded("team:2"), "q.io/team/image": encoded("image:3")}}
    file = auth_files.parse(json.dumps(table), "auth.json")
    assert auth_files.stored(file, "q.io", "team/image").username == "image"
    assert auth_files.stored(file, "q.io", "team/other").username == "team"
    assert auth_files.stored(file, "q.io", "teams").username == "host"
    assert not auth_files.stored(file, "r.io", "team")


@pytest.mark.parametrize("key", ["https://index.docker.io/v1/", "docker.io", "registry-1.docker.io"])
def test_docker_hub_by_any_of_its_names(key: str) -> None:
    file = auth_files.parse(json.dumps({"auths": {key: encoded("hub:x:y")}}), "config.json")
    assert auth_files.stored(file, "registry-1.docker.io", "library/busybox") == Credentials("hub", "x:y")


def test_tokens_and_plain_fields() -> None:
    table = {"auths": {"a": {"identitytoken": "t"}, "https://b/v2/": {"username": "u", "password": "p"}, "empty": {}}}
    file = auth_files.parse(json.dumps(table), "auth.json")
    assert auth_files.stored(file, "a", "x").identity_token == "t"
    assert auth_files.stored(file, "b", "x").password == "p"
    assert "empty" not in file.auths


@pytest.mark.parametrize(
    "text", ["", "[]", '{"auths": 7}', '{"auths": {"q": 7}}', '{"auths": {"q": {"auth": "%"}}}', '{"credsStore": "../x"}']
)
def test_mistakes_name_the_file_and_no_secret(text: str) -> None:
    with pytest.raises(ConfigError, match=r"auth\.json") as caught:
        auth_files.parse(text, "auth.json")
    assert "%" not in str(caught.value)


def program(directory: Path, name: str, script: str) -> None:
    path = directory / f"docker-credential-{name}"
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)


async def test_helpers(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", f"{tmp_path}:/usr/bin:/bin")
    program(tmp_path, "good", 'read host; echo "{\\"Username\\":\\"u\\",\\"Secret\\":\\"$host\\"}"')
    program(tmp_path, "token", 'echo "{\\"Username\\":\\"<token>\\",\\"Secret\\":\\"t\\"}"')
    program(tmp_path, "empty", "echo credentials not found in native keychain; exit 1")
    program(tmp_path, "broken", "echo sesame; exit 3")
    program(tmp_path, "garbage", "echo sesame")
    program(tmp_path, "stuck", "exec sleep 60")
    names = {
        "good.io": "good",
        "token.io": "token",
        "empty.io": "empty",
        "broken.io": "broken",
        "garbage.io": "garbage",
        "stuck.io": "stuck",
    }
    first, second = tmp_path / "first.json", tmp_path / "second.json"
    first.write_text(json.dumps({"credHelpers": {**names, "absent.io": "absent", "docker.io": "good"}}))
    second.write_text(json.dumps({"auths": {host: encoded("other:file") for host in (*names, "absent.io")}}))
    files = AuthFiles((tmp_path / "absent.json", first, second), timeout=0.5)
    assert (await files.credentials("good.io", "a")).password == "good.io"
    assert (await files.credentials("registry-1.docker.io", "library/a")).password == "https://index.docker.io/v1/"
    assert (await files.credentials("token.io", "a")).identity_token == "t"
    for host in ("empty.io", "broken.io", "garbage.io", "stuck.io", "absent.io"):
        assert (await files.credentials(host, "a")).username == "other", host
    assert not await files.credentials("unknown.io", "a")


async def test_a_helper_that_says_no_and_nobody_else(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    file = tmp_path / "auth.json"
    file.write_text("{")
    assert not await AuthFiles((file,)).credentials("q.io", "a")
