"""The program of a trial."""

from __future__ import annotations

import os
import struct
import subprocess
from pathlib import Path

import pytest

from bridge.host.trial_bundle import exit_program, program, trial_spec


def test_the_trial_program_exits_with_0(tmp_path: Path) -> None:
    program = exit_program(os.uname().machine)
    assert program is not None
    path = tmp_path / "exit"
    path.write_bytes(program)
    path.chmod(0o755)
    assert subprocess.run([path], check=False).returncode == 0


@pytest.mark.parametrize(("machine", "number"), [("x86_64", 62), ("aarch64", 183)])
def test_the_trial_program_is_for_its_machine(machine: str, number: int) -> None:
    program = exit_program(machine)
    assert program is not None
    assert struct.unpack_from("<H", program, 18)[0] == number
    assert struct.unpack_from("<Q", program, 24)[0] == 0x400000 + 120
    assert exit_program("vax") is None


def test_a_program_that_waits_and_one_that_becomes_another(tmp_path: Path) -> None:
    for name in ("wait", "again"):
        made = program(name, os.uname().machine)
        assert made is not None
        (tmp_path / name).write_bytes(made)
        (tmp_path / name).chmod(0o755)
        assert program(name, "vax") is None
    if not Path("/exit").exists():
        assert subprocess.run([tmp_path / "again"], check=False).returncode == 1, "there is no /exit here"
    with subprocess.Popen([tmp_path / "wait"]) as waiting:
        with pytest.raises(subprocess.TimeoutExpired):
            waiting.wait(0.2)
        waiting.kill()


def test_a_trial_may_compute_as_much_as_an_ordinary_process() -> None:
    # Its cgroup lies at the top, beside every process of the node: with two shares it needed minutes to start, and to die.
    assert trial_spec("/trial", seccomp=False)["linux"]["resources"]["cpu"] == {"shares": 1024}
