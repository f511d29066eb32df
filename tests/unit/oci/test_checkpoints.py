"""The verbs of a checkpoint, and what CRIU says, over programs that write down how they were called."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest

from bridge.errors import HostError, RuntimeFailed
from bridge.oci import checkpoint_trial, checkpoints
from bridge.oci.checkpoints import Checkpointed, launch_words
from bridge.oci.cli import OciCli, OciSettings
from bridge.oci.dialect import Dialect, Launch
from bridge.ports.runtime import ContainerIO, ContainerSpec, Feature, Support

_PATH = "/usr/sbin:/usr/bin:/sbin:/bin"


class Made(Checkpointed):
    """Without the rest of a container."""


def program(path: Path, text: str) -> Path:
    path.parent.mkdir(exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(0o755)
    return path


def handle(tmp_path: Path, text: str, *, dialect: Dialect | None = None) -> Checkpointed:
    runtime = program(tmp_path / "runtime", f'echo "$*" >> {tmp_path}/calls\n{text}')
    cli = OciCli(OciSettings("test", runtime, tmp_path / "state", env={"PATH": _PATH}, dialect=dialect or Dialect()))
    made = Made()
    made._runtime = SimpleNamespace(cli=cli)  # type: ignore[assignment]
    made._spec = ContainerSpec("c1", "p1", tmp_path, {}, ContainerIO())
    return made


def calls(tmp_path: Path) -> list[str]:
    prefix = f"--root {tmp_path}/state "
    return [line.removeprefix(prefix) for line in (tmp_path / "calls").read_text().splitlines()]


async def test_the_verbs(tmp_path: Path) -> None:
    made = handle(tmp_path, "")
    await made.pause()
    await made.checkpoint(Path("/images"), Path("/work"), timeout=5)
    await made.resume()
    assert calls(tmp_path) == ["pause c1", "checkpoint --image-path /images --work-path /work --leave-running c1", "resume c1"]


async def test_one_that_goes_on_already_or_has_ended_is_no_error(tmp_path: Path) -> None:
    for state in ('echo \'{"status": "running"}\'', "exit 1"):
        made = handle(tmp_path, f'case "$*" in *resume*) exit 1;; *state*) {state};; esac')
        await made.resume()


async def test_one_that_stays_paused_is(tmp_path: Path) -> None:
    made = handle(tmp_path, 'case "$*" in *resume*) echo stuck >&2; exit 1;; *state*) echo \'{"status": "paused"}\';; esac')
    with pytest.raises(RuntimeFailed, match="stuck"):
        await made.resume()


async def test_criu_has_the_word_when_it_fails(tmp_path: Path) -> None:
    made = handle(tmp_path, 'echo "criu failed: type NOTIFY errno 0" >&2; exit 1')
    lines = [
        "(00.001) Dumping",
        "(00.2) Error (criu/tcp.c:1): Connected TCP socket, consider using --tcp-established option.",
        "(00.3) end",
    ]
    (tmp_path / "dump.log").write_text("\n".join(lines))
    with pytest.raises(RuntimeFailed, match=r"criu failed.*; Error \(criu/tcp\.c:1\): Connected TCP socket") as failure:
        await made.checkpoint(tmp_path / "images", tmp_path, timeout=5)
    assert failure.value.verb == "checkpoint"


def test_errors_of_a_log(tmp_path: Path) -> None:
    assert checkpoints.errors_of(tmp_path / "absent") == ()
    (tmp_path / "log").write_text("".join(f"(00.{number}) Error (criu/x.c:{number}): no\n" for number in range(20)))
    assert checkpoints.errors_of(tmp_path / "log") == [f"Error (criu/x.c:{number}): no" for number in range(14, 20)]


def test_how_a_container_is_launched(tmp_path: Path) -> None:
    fresh = ContainerSpec("c1", "p1", Path("/b"), {}, ContainerIO())
    restored = ContainerSpec("c1", "p1", Path("/b"), {}, ContainerIO(), Path("/images"))
    for launch, verb, detach in ((Launch.RUN, "run", ["--detach"]), (Launch.CREATE, "create", [])):
        cli = OciCli(OciSettings("test", tmp_path, tmp_path, dialect=Dialect(launch=launch)))
        assert launch_words(cli, fresh, Path("/pid"), None) == (verb, [*detach, "--bundle", "/b", "--pid-file", "/pid"])
        words = ["--detach", "--bundle", "/b", "--pid-file", "/pid", "--image-path", "/images", "--work-path", "/b"]
        assert launch_words(cli, restored, Path("/pid"), Path("/tty")) == ("restore", [*words, "--console-socket", "/tty"])


async def test_what_criu_says_of_the_node(tmp_path: Path) -> None:
    assert (await checkpoints.criu(str(tmp_path / "empty"), timeout=5)).detail == "criu is not installed"
    search = f"{tmp_path}/bin:{_PATH}"
    program(tmp_path / "bin" / "criu", 'test "$1" = check && echo "Looks good."')
    found = await checkpoints.criu(search, timeout=5)
    assert (found.support, found.detail) == (Support.SUPPORTED, f"criu check of {tmp_path}/bin/criu")
    program(tmp_path / "bin" / "criu", 'echo "Warn  (criu/x.c:1): odd" >&2; echo "Error (criu/vdso.c:381): vdso: Unexpected" >&2; exit 1')
    found = await checkpoints.criu(search, timeout=5)
    assert (found.support, found.detail) == (Support.UNSUPPORTED, "criu check: Error (criu/vdso.c:381): vdso: Unexpected")
    program(tmp_path / "bin" / "criu", "exit 3")
    assert (await checkpoints.criu(search, timeout=5)).detail == "criu check: exit code 3"
    program(tmp_path / "bin" / "criu", "sleep 60")
    assert "did not end within 0.2 s" in (await checkpoints.criu(search, timeout=0.2)).detail


def test_what_crun_must_be_told_of_to_restore(tmp_path: Path) -> None:
    oci = {"mounts": [{"destination": "/proc"}]}
    assert checkpoints.restorable(oci, "runc version 1.1.5", tmp_path) is oci
    found = checkpoints.restorable(oci, "crun version 1.28", tmp_path)
    (told,) = [mount for mount in found["mounts"] if mount["destination"] == "/run/crun/.empty-directory"]
    assert (told["type"], list(Path(told["source"]).iterdir())) == ("bind", [])
    assert oci["mounts"] == [{"destination": "/proc"}]
    assert checkpoints.restorable(oci, "crun version 1.28", tmp_path) == found
    with pytest.raises(HostError, match="can't make"):
        checkpoints.restorable(oci, "crun version 1.28", tmp_path / "absent")


async def tried(tmp_path: Path, text: str, **dialect: object) -> Feature:
    made = handle(tmp_path, text, dialect=Dialect(**dialect))._runtime.cli  # type: ignore[arg-type]
    found = Feature(Support.SUPPORTED, "criu check")
    return await checkpoint_trial.tried(made, found, tmp_path / "bundle", seccomp=False, timeout=5)


async def test_the_trial_restores_what_it_checkpointed(tmp_path: Path) -> None:
    found = await tried(tmp_path, "")
    assert (found.support, found.detail) == (Support.SUPPORTED, "criu check; a trial container was checkpointed and restored")
    assert [line.split()[0] for line in calls(tmp_path)] == ["run", "checkpoint", "delete", "restore", "delete", "delete"]
    assert not (tmp_path / "bundle").exists()


@pytest.mark.parametrize("verb", ["run", "checkpoint", "restore"])
async def test_a_trial_that_fails_says_why_and_leaves_nothing(tmp_path: Path, verb: str) -> None:
    log = f'echo "(00.1) Error (criu/x.c:1): no" > {tmp_path}/bundle/dump.log'
    found = await tried(tmp_path, f'case "$*" in *" {verb} "*) {log}; echo "could not load libcriu.so.2" >&2; exit 1;; esac')
    assert found.support is Support.UNSUPPORTED
    assert "could not load libcriu.so.2" in found.detail
    assert f"{verb} failed" in found.detail
    assert found.detail.endswith("; Error (criu/x.c:1): no")
    assert calls(tmp_path)[-1].startswith("delete --force")
    assert not (tmp_path / "bundle").exists()


async def test_a_runtime_that_can_not_run_the_trial_is_believed(tmp_path: Path) -> None:
    assert (await tried(tmp_path, "exit 1", trial=False)).detail == "criu check; not tried"
