"""argv, environment, working directory and exec: the CRI's rules as tables."""

from __future__ import annotations

import dataclasses

import pytest

from bridge.core.entities import User
from bridge.core.model import ContainerSecurity, Resources
from bridge.core.spec import build_container, process_for_exec
from bridge.core.spec_process import DEFAULT_PATH
from bridge.errors import InvalidRequest
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, facts, image, inputs, sandbox

E, C = ("/entry", "-e"), ("cmd", "-c")


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "argv"),
    [
        (E, C, (), (), [*E, *C]),
        (E, (), (), (), [*E]),
        ((), C, (), (), [*C]),
        (E, C, ("run",), (), ["run"]),
        (E, C, ("run",), ("now",), ["run", "now"]),
        (E, C, (), ("now",), [*E, "now"]),
        ((), C, (), ("now",), ["now"]),
        ((), (), ("run",), ("", "x"), ["run", "", "x"]),
        (("",), C, (), (), [*C]),  # ENTRYPOINT [""] takes back that of the image below
        (("",), C, (), ("now",), ["now"]),
        (("",), C, ("run",), (), ["run"]),
        ((), C, ("run",), (), ["run"]),
        (E, ("",), (), (), [*E, ""]),
    ],
)
def test_arguments(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], command: tuple[str, ...], args: tuple[str, ...], argv: list[str]
) -> None:
    given = inputs(image=image(entrypoint=entrypoint, cmd=cmd), config=config(command=command, args=args))
    assert build_container(given, FACTS, SETTINGS)["process"]["args"] == argv


@pytest.mark.parametrize(
    ("entrypoint", "cmd", "command", "args", "field"),
    [
        ((), (), (), (), "config.command"),
        (("",), (), (), (), "config.command"),
        ((), C, ("",), ("x",), "config.command"),
        ((), ("x",), ("a\0b",), (), "config.command"),
        ((), C, (), ("", "x"), "config.args"),
        ((), ("", "x"), (), (), "the image's command"),
        (("", "x"), (), (), ("y",), "the image's command"),
    ],
)
def test_nothing_to_run(
    entrypoint: tuple[str, ...], cmd: tuple[str, ...], command: tuple[str, ...], args: tuple[str, ...], field: str
) -> None:
    given = inputs(image=image(entrypoint=entrypoint, cmd=cmd), config=config(command=command, args=args))
    with pytest.raises(InvalidRequest) as caught:
        build_container(given, FACTS, SETTINGS)
    assert caught.value.field == field


def test_environment_order_and_precedence() -> None:
    given = inputs(
        image=image(env=("PATH=/image/bin", "A=image", "B=image", "JUSTANAME", "=nameless")),
        config=config(envs=(("B", "request"), ("C", "x=y"), ("B", "last")), tty=True),
        home="/home/app",
    )
    settings = dataclasses.replace(SETTINGS, default_env=("A=operator", "D=operator"))
    assert build_container(given, FACTS, settings)["process"]["env"] == [
        "PATH=/image/bin",
        "HOSTNAME=web-0",
        "TERM=xterm",
        "A=image",
        "D=operator",
        "B=last",
        "C=x=y",
        "HOME=/home/app",
    ]


def test_environment_of_a_bare_image() -> None:
    pod = sandbox()
    pod = dataclasses.replace(pod, config=dataclasses.replace(pod.config, hostname=""))
    env = build_container(inputs(sandbox=pod), FACTS, SETTINGS)["process"]["env"]
    assert env == [f"PATH={DEFAULT_PATH}", "HOSTNAME=node-1", "HOME=/root"]


def test_home_of_the_image_stays() -> None:
    env = build_container(inputs(image=image(env=("HOME=/data",))), FACTS, SETTINGS)["process"]["env"]
    assert [entry for entry in env if entry.startswith("HOME=")] == ["HOME=/data"]


@pytest.mark.parametrize("pair", [("", "x"), ("a=b", "x"), ("a\0", "x"), ("a", "\0")])
def test_impossible_variables_are_refused(pair: tuple[str, str]) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_container(inputs(config=config(envs=(("OK", ""), pair))), FACTS, SETTINGS)
    assert caught.value.field == "config.envs[1]"


@pytest.mark.parametrize(
    ("wanted", "of_image", "cwd"),
    [("", "", "/"), ("", "/app", "/app"), ("/work", "/app", "/work"), ("", "relative", "/relative"), ("/proc", "", "/proc")],
)
def test_working_dir(wanted: str, of_image: str, cwd: str) -> None:
    given = inputs(image=image(working_dir=of_image), config=config(working_dir=wanted))
    assert build_container(given, FACTS, SETTINGS)["process"]["cwd"] == cwd


@pytest.mark.parametrize("path", ["relative", "/proc/self/fd/7", "//proc//self/fd/8/..", "/proc/thread-self/fd", "/proc/1/fd/9"])
def test_working_dir_among_descriptors_cve_2024_21626(path: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        build_container(inputs(config=config(working_dir=path)), FACTS, SETTINGS)
    assert caught.value.field == "config.working_dir"
    if path.startswith("/"):
        with pytest.raises(InvalidRequest):
            build_container(inputs(image=image(working_dir=path)), FACTS, SETTINGS)


def test_user_privileges_and_score() -> None:
    given = inputs(
        user=User(5, 6, (6, 7)),
        security=ContainerSecurity(no_new_privs=True),
    )
    process = build_container(given, FACTS, SETTINGS)["process"]
    assert process["user"] == {"uid": 5, "gid": 6, "additionalGids": [6, 7]}
    assert process["noNewPrivileges"] is True
    assert process["oomScoreAdj"] == 0  # never inherited from the monitor
    assert "rlimits" not in process


@pytest.mark.parametrize(
    ("own", "may_lower", "wanted", "got"), [(0, False, -998, 0), (-500, False, -998, -500), (0, True, -998, -998), (0, False, 900, 900)]
)
def test_oom_score_is_clamped_to_the_servers_own(own: int, may_lower: bool, wanted: int, got: int) -> None:
    host = facts(oom_score_adj=own, can_lower_oom_score=may_lower)
    given = inputs(config=config(resources=Resources(oom_score_adj=wanted)))
    assert build_container(given, host, SETTINGS)["process"]["oomScoreAdj"] == got


def test_exec_keeps_identity_and_changes_only_what_it_must() -> None:
    spec = build_container(inputs(user=User(5, 6, (6,)), security=ContainerSecurity(no_new_privs=True)), FACTS, SETTINGS)
    before = [*spec["process"]["env"]]
    process = process_for_exec(spec, ["sh", "-c", "id"], tty=True)
    assert process["args"] == ["sh", "-c", "id"]
    assert process["terminal"] is True
    assert "TERM=xterm" in process["env"]
    same = {"user", "capabilities", "cwd", "noNewPrivileges", "oomScoreAdj"}
    assert {key: process[key] for key in same} == {key: spec["process"][key] for key in same}
    assert spec["process"]["env"] == before
    assert spec["process"]["args"] == ["server"]
    assert "TERM=xterm" not in process_for_exec(spec, ["id"], tty=False)["env"]


def test_exec_of_nothing() -> None:
    with pytest.raises(InvalidRequest) as caught:
        process_for_exec(build_container(inputs(), FACTS, SETTINGS), [], tty=False)
    assert caught.value.field == "cmd"


def test_the_servers_own_descriptor_limit_is_said_outright() -> None:
    built = build_container(inputs(), dataclasses.replace(FACTS, nofile=(1024, 4096)), SETTINGS)
    wanted = [{"type": "RLIMIT_NOFILE", "soft": 1024, "hard": 4096}]
    assert built["process"]["rlimits"] == wanted
    assert process_for_exec(built, ["true"], tty=False)["rlimits"] == wanted
    assert "rlimits" not in build_container(inputs(), FACTS, SETTINGS)["process"]
