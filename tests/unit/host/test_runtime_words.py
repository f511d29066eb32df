import pytest

from bridge.host.runtime_words import merge, parse_log, start_code

RUNC = '{"level":"error","msg":"exec failed: exec: \\"nope\\": executable file not found in $PATH","time":"x"}'


def test_json_lines_become_their_messages() -> None:
    assert parse_log(RUNC + "\n") == ('exec failed: exec: "nope": executable file not found in $PATH',)


def test_grave_lines_win_over_chatter_and_the_tail_is_kept() -> None:
    chatter = "\n".join(f'{{"level":"debug","msg":"step {i}"}}' for i in range(20))
    assert parse_log(chatter)[-1] == "step 19"
    assert parse_log(chatter + '\n{"level":"error","msg":" bad "}\n{"level":"info","msg":"bye"}') == ("bad",)
    assert len(parse_log("\n".join(f"line {i}" for i in range(50)))) == 6


@pytest.mark.parametrize("line", ["not json", "[1]", '{"level": 3}', '{"msg": 3}', '{"msg": "cut'])
def test_what_is_not_a_log_object_stays_as_it_is(line: str) -> None:
    assert parse_log(line + "\n\n") == (line,)


def test_stderr_adds_only_what_the_log_did_not_say() -> None:
    assert merge(("a: b",), ["b", "c"]) == ("a: b", "c")
    assert merge((), [RUNC])[0].startswith("exec failed")


@pytest.mark.parametrize(
    ("said", "code"),
    [
        ('unable to start container process: exec: "nope": executable file not found in $PATH', 127),
        ('unable to start container process: exec: "/nope": stat /nope: no such file or directory', 127),
        ("executable file `/nope` not found in $PATH: No such file or directory", 127),
        ('unable to start container process: exec: "/tmp": permission denied', 126),
        ('unable to start container process: exec: "/etc": is a directory', 126),
        ("open executable: Operation not permitted", 126),
        ("exec /x: exec format error", 126),
        ("the path `/tmp` is not a regular file: Operation not permitted", 126),
        ("the path `/etc/passwd` exists but it is not executable: Operation not permitted", 126),
        ('error mounting "/no/such" to rootfs at "/x": stat /no/such: no such file or directory', 128),
        ("cannot set memory limit: permission denied", 128),
        ("", 128),
    ],
)
def test_the_kinds_of_failure_are_told_apart(said: str, code: int) -> None:
    assert start_code([said]) == code
