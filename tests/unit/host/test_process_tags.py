"""Tags of processes, by which all that one of them forked is found."""

from __future__ import annotations

import os
import subprocess

from bridge.host import process_tags


def test_a_tag_is_inherited_and_found() -> None:
    tag = process_tags.new()
    with subprocess.Popen(["sleep", "1000"]) as plain:
        script = "setsid sh -c 'setsid sleep 1000 & exec sleep 1000' & echo up; wait"
        argv = ["prlimit", f"--rttime={tag}:{tag}", "sh", "-c", script]
        with subprocess.Popen(argv, stdout=subprocess.PIPE, start_new_session=True) as tagged:
            assert tagged.stdout is not None
            assert tagged.stdout.readline() == b"up\n"
            everyone = [int(entry) for entry in os.listdir("/proc") if entry.isdigit()]
            found = process_tags.find(everyone, tag)
            assert tagged.pid in found
            assert plain.pid not in found
            assert process_tags.find(everyone, process_tags.new()) == []
            while found:
                for pid in found:
                    os.kill(pid, 9)
                tagged.wait()
                found = process_tags.find([pid for pid in found if _alive(pid)], tag)
        plain.kill()


def _alive(pid: int) -> bool:
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b")")[2].split()[0] not in (b"Z", b"X")
    except OSError:
        return False


def test_a_process_gets_one_tag_beside_its_limits() -> None:
    files = {"type": "RLIMIT_NOFILE", "soft": 1, "hard": 1}
    tag = process_tags.new()
    assert process_tags.tagged({"args": ["x"], "rlimits": [files]}, tag) == {
        "args": ["x"],
        "rlimits": [files, {"type": "RLIMIT_RTTIME", "soft": tag, "hard": tag}],
    }
    own = {"rlimits": [{"type": "RLIMIT_RTTIME", "soft": 1, "hard": 1}]}
    assert process_tags.tagged(own, tag) is own
