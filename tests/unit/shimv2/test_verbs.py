"""The verbs of a shim's binary, played by scripts: command line, environment, outputs apart, time-outs, and its words in errors."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from bridge._proto.containerd.runtime.bootstrap.v1 import BootstrapParams, BootstrapResult, Extension
from bridge._proto.containerd.task.v2 import DeleteResponse
from bridge._proto.containerd.types import Any, RuntimeInfo, RuntimeVersion, Timestamp
from bridge.errors import CorruptData, HostError, RuntimeFailed
from bridge.ports.runtime import ExitStatus
from bridge.shimv2.bootstrap import ShimAddress
from bridge.shimv2.encoding import decode, runtime_options
from bridge.shimv2.verbs import ShimBinary, exit_status

ADDRESS = "unix:///run/containerd/s/0123"


class Script:
    """A shim's binary that writes down how it was called, and then does what a test says, in sh."""

    def __init__(self, root: Path, does: str) -> None:
        self.root = root
        self.bundle = root / "c1"
        self.bundle.mkdir()
        self.path = root / "containerd-shim-test-v2"
        self.path.write_text(
            f'#!/bin/sh\nfor word; do echo "$word"; done > {root}/argv\nenv > {root}/env\npwd > {root}/cwd\n'
            f"cat > {root}/stdin.$(ls {root} | grep -c stdin)\n{does}\n"
        )
        self.path.chmod(0o755)

    def binary(self, **settings: object) -> ShimBinary:
        return ShimBinary(self.path, "vm", **settings)  # type: ignore[arg-type]

    def lines(self, name: str) -> list[str]:
        return (self.root / name).read_text().splitlines()

    def prints(self, data: bytes) -> str:
        (self.root / "output").write_bytes(data)
        return f"cat {self.root}/output"


def script(root: Path, does: str = "", *, output: bytes = b"") -> Script:
    made = Script(root, does)
    if output:
        with made.path.open("a") as file:
            file.write(made.prints(output) + "\n")
    return made


async def test_start_is_called_as_containerd_calls_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SECRET_OF_THE_SERVER", "1")
    shim = script(tmp_path, "echo a warning >&2", output=ADDRESS.encode())
    options = runtime_options(config_path="/etc/kata.toml")
    binary = shim.binary(namespace="ns", events=Path("/run/e.sock"), env={"KATA": "1"}, debug=True)
    assert await binary.start("c1", shim.bundle, options=options) == ShimAddress(ADDRESS)
    expected = ["-namespace", "ns", "-address", "", "-publish-binary", "/bin/true", "-id", "c1", "-debug", "start"]
    assert shim.lines("argv") == expected
    assert shim.lines("cwd") == [str(shim.bundle)]
    assert {
        "NAMESPACE=ns",
        "TTRPC_ADDRESS=/run/e.sock",
        "GRPC_ADDRESS=",
        "MAX_SHIM_VERSION=2",
        "KATA=1",
        f"PATH={os.environ['PATH']}",
    } <= set(shim.lines("env"))
    assert not [line for line in shim.lines("env") if "SECRET" in line]
    assert (tmp_path / "stdin.0").read_bytes() == bytes(options)


async def test_a_shim_that_wants_the_newer_message_gets_it_and_is_remembered(tmp_path: Path) -> None:
    answer = bytes(BootstrapResult(version=3, address=ADDRESS, protocol="ttrpc"))
    words = "containerd-shim: bootstrap parameters do not match command-line arguments: shim was started through the deprecated API but …"
    shim = script(tmp_path, f'grep -q c1 {tmp_path}/stdin.* || {{ echo "{words}" >&2; exit 1; }}', output=answer)
    options = runtime_options(config_path="/etc/x")
    binary = shim.binary(events=Path("/run/e.sock"))
    assert await binary.start("c1", shim.bundle, options=options) == ShimAddress(ADDRESS, 3)
    assert await binary.start("c1", shim.bundle, options=options) == ShimAddress(ADDRESS, 3)
    sent = [path.read_bytes() for path in sorted(tmp_path.glob("stdin.*"))]
    assert len(sent) == 3
    assert sent[0] == bytes(options)
    for data in sent[1:]:
        assert decode(BootstrapParams, data) == BootstrapParams(
            instance_id="c1",
            namespace="default",
            containerd_ttrpc_address="/run/e.sock",
            containerd_binary="/bin/true",
            extensions=[Extension(value=options)],
        )


@pytest.mark.parametrize("stream", [1, 2])
async def test_what_a_failed_start_said_is_in_the_error(tmp_path: Path, stream: int) -> None:
    shim = script(tmp_path, f"for i in $(seq 30); do echo line $i >&{stream}; done; exit 3")
    with pytest.raises(RuntimeFailed, match=r"handler 'vm': start failed \(exit code 3\): line 11; .*line 30") as caught:
        await shim.binary().start("c1", shim.bundle)
    assert str(shim.path) in str(caught.value)


async def test_a_start_that_hangs_is_killed(tmp_path: Path) -> None:
    shim = script(tmp_path, "echo $$ > pid; exec sleep 1000")
    with pytest.raises(RuntimeFailed, match=r"start failed \(timed out\)"):
        await shim.binary(start_timeout=0.3).start("c1", shim.bundle)
    assert not Path("/proc", (shim.bundle / "pid").read_text().strip()).exists()


async def test_what_can_not_be_run_or_read_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "c1").mkdir()
    with pytest.raises(HostError, match="can't run"):
        await ShimBinary(tmp_path / "missing", "vm").start("c1", tmp_path / "c1")
    (tmp_path / "c1").rmdir()
    shim = script(tmp_path, "exit 0")
    with pytest.raises(CorruptData, match="no address"):
        await shim.binary().start("c1", shim.bundle)


async def test_delete_tells_how_it_ended(tmp_path: Path) -> None:
    answer = DeleteResponse(pid=7, exit_status=137, exited_at=Timestamp(seconds=5, nanos=9))
    shim = script(tmp_path, "echo a warning >&2", output=bytes(answer))
    assert await shim.binary().delete("c1", shim.bundle) == ExitStatus(137, 9, at_ns=5_000_000_009)
    assert shim.lines("argv")[-5:] == ["-id", "c1", "-bundle", str(shim.bundle), "delete"]
    assert shim.lines("cwd") == [str(shim.bundle)]


async def test_a_failed_delete_is_an_error(tmp_path: Path) -> None:
    shim = script(tmp_path, "echo no such sandbox >&2; exit 1")
    with pytest.raises(RuntimeFailed, match=r"delete failed \(exit code 1\): no such sandbox"):
        await shim.binary().delete("c1", shim.bundle)


async def test_info_asks_with_the_options(tmp_path: Path) -> None:
    answer = RuntimeInfo(name="io.containerd.vm.v2", version=RuntimeVersion(version="4.1"), features=Any(type_url="f", value=b"{}"))
    shim = script(tmp_path, output=bytes(answer))
    options = runtime_options(config_path="/etc/x")
    assert await shim.binary().info(options) == answer
    assert shim.lines("argv") == ["-info"]
    assert (tmp_path / "stdin.0").read_bytes() == bytes(options)


async def test_info_of_a_shim_that_does_not_know_it(tmp_path: Path) -> None:
    shim = script(tmp_path, "echo flag provided but not defined: -info >&2; exit 2")
    with pytest.raises(RuntimeFailed, match="flag provided but not defined"):
        await shim.binary().info()
    shim.path.write_text("#!/bin/sh\necho Usage:\n")
    with pytest.raises(CorruptData, match="-info printed malformed RuntimeInfo"):
        await shim.binary().info()


@pytest.mark.parametrize(
    ("code", "expected"), [(0, (0, None)), (3, (3, None)), (128, (128, None)), (137, (137, 9)), (192, (192, 64)), (255, (255, None))]
)
def test_an_exit_code_tells_the_signal(code: int, expected: tuple[int, int | None]) -> None:
    status = exit_status(code, 1)
    assert (status.code, status.signal) == expected
