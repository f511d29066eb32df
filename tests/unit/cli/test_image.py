"""What the image verbs say: to a person, to programs, and when the server is an older one."""

from __future__ import annotations

import io
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import pytest
from anyio.to_thread import run_sync
from grpclib.const import Status
from grpclib.exceptions import GRPCError

from bridge._proto.bridge.admin import v1 as admin
from bridge._proto.runtime import v1 as pb
from bridge.api.server import GrpcServer
from bridge.cli.bars import Lines, bars
from bridge.cli.image import report_lines
from bridge.cli.main import main

ID = "sha256:" + "a" * 64


class OldImages(pb.ImageServiceBase):
    """A server that speaks CRI only."""

    def __init__(self) -> None:
        super().__init__()
        self.auth: pb.AuthConfig | None = None

    async def list_images(self, message: pb.ListImagesRequest) -> pb.ListImagesResponse:
        return pb.ListImagesResponse(images=[pb.Image(id=ID, repo_tags=["example.com/a:1"], size=2048, pinned=True)])

    async def pull_image(self, message: pb.PullImageRequest) -> pb.PullImageResponse:
        self.auth = message.auth
        return pb.PullImageResponse(image_ref=ID)


class Images(admin.AdminBase):
    """Answers as a server of this release."""

    def __init__(self) -> None:
        super().__init__()
        self.pulled: admin.PullImageRequest | None = None
        self.exported: admin.ExportImagesRequest | None = None
        self.check = admin.CheckImagesResponse(layers=2, seconds=0.5)

    async def list_images(self, message: admin.ListImagesRequest) -> admin.ListImagesResponse:
        used = admin.StoredImage(id=ID, tags=["example.com/a:1", "example.com/b:1"], size=2048, used_by=["c1", "c2"])
        lost = admin.StoredImage(id="sha256:" + "b" * 64, digests=["example.com/a@sha256:" + "c" * 64], size=5 << 20, damaged=True)
        model = admin.StoredImage(id="sha256:" + "e" * 64, tags=["example.com/model:1"], size=7, pinned=True, artifact_type="application/x")
        return admin.ListImagesResponse(images=[used, lost, model])

    async def pull_image(self, message: admin.PullImageRequest) -> AsyncIterator[admin.PullImageResponse]:
        self.pulled = message
        for done in (10, 20):
            layer = admin.LayerProgress(digest="sha256:" + "d" * 64, size=20, done=done, state="downloading")
            yield admin.PullImageResponse(progress=admin.Progress(subject="example.com/a:1", layers=[layer]))
        yield admin.PullImageResponse(image=admin.StoredImage(id=ID, tags=["example.com/a:1"]))

    async def export_images(self, message: admin.ExportImagesRequest) -> AsyncIterator[admin.ExportImagesResponse]:
        self.exported = message
        yield admin.ExportImagesResponse(file=admin.ExportedFile(size=4096, images=[admin.ImportedImage(id=ID, tags=["example.com/a:1"])]))

    async def verify_images(self, message: admin.CheckImagesRequest) -> AsyncIterator[admin.VerifyImagesResponse]:
        yield admin.VerifyImagesResponse(report=self.check)

    async def prune_images(self, message: admin.PruneImagesRequest) -> admin.PruneImagesResponse:
        return admin.PruneImagesResponse(images=[admin.StoredImage(id=ID)], layers=3, freed_bytes=1 << 20)


@pytest.fixture
async def run(tmp_path: Path) -> Callable[..., Any]:
    """Serve a service and run the command against it; its exit code."""
    path = tmp_path / "s.sock"

    async def call(service: Any, *words: str) -> int:
        async with GrpcServer([service]) as server:
            await server.listen(path)
            return await run_sync(main, ["image", *words, "--socket", str(path)])

    return call


Run = Callable[..., Any]


async def test_list(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(Images(), "ls") == 0
    heading, lost, used, model = capsys.readouterr().out.splitlines()
    assert heading.split("  ")[0] == "IMAGE"
    assert used.split() == ["example.com/a:1,", "example.com/b:1", "a" * 13, "2.0", "KiB", "2", "containers"]
    assert lost.split() == ["<none>", "b" * 13, "5.0", "MiB", "damaged"]
    assert model.split() == ["example.com/model:1", "e" * 13, "7", "B", "artifact,", "pinned"]
    await run(Images(), "ls", "-q")
    assert capsys.readouterr().out.splitlines() == [ID, "sha256:" + "b" * 64, "sha256:" + "e" * 64]
    await run(Images(), "ls", "--digests", "--no-trunc")
    said = capsys.readouterr().out
    assert "example.com/a@sha256:ccc" in said
    assert ID in said
    await run(Images(), "list", "-o", "json")
    assert '"used_by": [\n      "c1",' in capsys.readouterr().out


async def test_an_older_server_lists_and_pulls(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    server = OldImages()
    assert await run(server, "ls") == 0
    assert "pinned" in capsys.readouterr().out
    assert await run(server, "pull", "example.com/a:1", "--creds", "me:pa:ss") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{ID}\n"
    assert "does not tell how far" in captured.err
    assert server.auth is not None
    assert (server.auth.username, server.auth.password) == ("me", "pa:ss")
    await run(server, "pull", "example.com/a:1", "-q")
    assert capsys.readouterr().err == ""
    assert server.auth is None


@pytest.mark.parametrize("words", [["export", "a", "-f", "/tmp/x"], ["check"], ["prune"], ["inspect", "a"]])
async def test_an_older_server_is_told_apart_in_words(run: Run, words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(OldImages(), *words) == 1
    said = capsys.readouterr().err
    assert "does not know" in said
    assert "older than this command" in said
    assert "systemctl restart cri-bridge" in said
    assert "Traceback" not in said


async def test_pull_says_on_stderr_how_far_and_on_stdout_what(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    service = Images()
    assert await run(service, "pull", "example.com/a:1") == 0
    captured = capsys.readouterr()
    assert captured.out == f"{ID}\n"
    assert captured.err == f"{'d' * 12}  20 B  done\n"
    assert service.pulled == admin.PullImageRequest(reference="example.com/a:1")


async def test_credentials_from_a_file(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service, file = Images(), tmp_path / "auth.json"
    file.write_text('{"auths": {"example.com": {"auth": "bWU6c2VjcmV0"}}}')
    assert await run(service, "pull", "example.com/a:1", "-q", "--auth-file", str(file)) == 0
    assert service.pulled is not None
    assert (service.pulled.username, service.pulled.password) == ("me", "secret")
    for words, said in [
        (("elsewhere.org/a:1", "--auth-file", str(file)), "has no credentials for elsewhere.org/a"),
        (("example.com/a:1", "--auth-file", str(tmp_path / "absent")), "can't read"),
    ]:
        assert await run(service, "pull", *words) == 1
        captured = capsys.readouterr()
        assert said in captured.err
        assert "secret" not in captured.err


async def test_a_password_is_asked_for(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("getpass.getpass", lambda prompt: f"typed at {prompt}")
    service = Images()
    assert await run(service, "pull", "example.com/a:1", "-q", "--creds", "me") == 0
    assert service.pulled is not None
    assert service.pulled.password == "typed at password of me: "


async def test_export_asks_for_what_was_said(run: Run, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    service = Images()
    assert await run(service, "export", "a", "b", "-f", str(tmp_path / "x.tar")) == 0
    captured = capsys.readouterr()
    assert captured.out == f"{tmp_path}/x.tar\n"
    assert "1 image, 4.0 KiB" in captured.err
    asked = service.exported
    assert asked == admin.ExportImagesRequest(references=["a", "b"], path=f"{tmp_path}/x.tar", format="oci", compression="gzip")
    await run(service, "export", "a", "-f", "x.tar", "--format", "docker", "--force")
    assert service.exported is not None
    assert (service.exported.compression, service.exported.replace) == ("none", True)
    assert service.exported.path == str(Path.cwd() / "x.tar")


class Sender(Images):
    """Sends the archive, and tells how far a check is."""

    async def export_images(self, message: admin.ExportImagesRequest) -> AsyncIterator[admin.ExportImagesResponse]:
        self.exported = message
        for data in (b"the \xff", b"archive"):
            yield admin.ExportImagesResponse(data=data)
        yield admin.ExportImagesResponse(file=admin.ExportedFile(size=12, images=[admin.ImportedImage(id=ID)]))

    async def verify_images(self, message: admin.CheckImagesRequest) -> AsyncIterator[admin.VerifyImagesResponse]:
        for state in ("checking", "done"):
            layer = admin.LayerProgress(digest="sha256:" + "f" * 64, size=20, state=state)
            yield admin.VerifyImagesResponse(progress=admin.Progress(layers=[layer]))
        yield admin.VerifyImagesResponse(report=admin.CheckImagesResponse(layers=1, full=message.full, seconds=1))


class Mute(Images):
    """Of a release that checked without a word."""

    async def verify_images(self, message: admin.CheckImagesRequest) -> AsyncIterator[admin.VerifyImagesResponse]:
        raise GRPCError(Status.UNIMPLEMENTED, "unknown method VerifyImages")
        yield

    async def check_images(self, message: admin.CheckImagesRequest) -> admin.CheckImagesResponse:
        return self.check


async def test_a_check_by_a_server_that_does_not_tell_how_far_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(Mute(), "check") == 0
    assert capsys.readouterr().out.startswith("nothing is damaged: 2 layers")


@pytest.mark.parametrize("words", [[], ["-o", "json"]])
async def test_an_export_to_stdout_is_the_archive_and_nothing_else(run: Run, capfdbinary: Any, words: list[str]) -> None:
    service = Sender()
    assert await run(service, "export", "a", "-f", "-", *words) == 0
    captured = capfdbinary.readouterr()
    assert captured.out == b"the \xffarchive"
    assert b"1 image, 12 B" in captured.err
    assert service.exported is not None
    assert service.exported.path == "-"


async def test_no_archive_goes_to_a_terminal(run: Run, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True, raising=False)
    service = Sender()
    assert await run(service, "export", "a", "-f", "-") == 1
    assert "stdout is a terminal" in capsys.readouterr().err
    assert service.exported is None


async def test_a_check_says_on_stderr_how_far_it_is(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(Sender(), "check", "--full") == 0
    captured = capsys.readouterr()
    assert captured.out == "nothing is damaged: 1 layer in 1.0 s, every byte read\n"
    assert captured.err == f"{'f' * 12}  20 B  done\n"
    assert await run(Sender(), "check", "-q") == 0
    assert capsys.readouterr().err == ""


DAMAGED = admin.DamagedLayer(
    chain_id="sha256:x", directory="7", problems=["'/a' is missing"], images=["example.com/a:1"], containers=["c1"]
)


@pytest.mark.parametrize(
    ("answer", "words", "code"),
    [
        (admin.CheckImagesResponse(layers=2), ["check"], 0),
        (admin.CheckImagesResponse(layers=2, damaged=[DAMAGED]), ["check"], 1),
        (admin.CheckImagesResponse(index_faults=["row 1"]), ["check", "--repair"], 1),
        (admin.CheckImagesResponse(damaged=[DAMAGED], repairs=[admin.RepairedImage(id=ID)]), ["check", "--repair"], 0),
        (admin.CheckImagesResponse(damaged=[DAMAGED], repairs=[admin.RepairedImage(id=ID, error="gone")]), ["check", "--repair"], 1),
        (admin.CheckImagesResponse(damaged_documents=["sha256:y"]), ["check", "-o", "json"], 1),
    ],
)
async def test_the_exit_code_of_a_check(run: Run, answer: admin.CheckImagesResponse, words: list[str], code: int) -> None:
    service = Images()
    service.check = answer
    assert await run(service, *words) == code


def test_what_a_check_says() -> None:
    said = report_lines(admin.CheckImagesResponse(layers=2, damaged=[DAMAGED], seconds=1.5), repair=False)
    assert said == [
        "layer sha256:x in directory 7 is damaged; on it stand example.com/a:1",
        "  '/a' is missing",
        "  container c1 uses it",
        "damaged: 1 of 2 layers in 1.5 s, attributes compared; cri-bridge image check --repair fetches it again",
    ]
    repairs = [admin.RepairedImage(id=ID, names=["example.com/a:1"]), admin.RepairedImage(id=ID, error="no registry")]
    said = report_lines(admin.CheckImagesResponse(layers=1, full=True, damaged=[DAMAGED], repairs=repairs, seconds=2), repair=True)
    assert said[-3:] == [
        "example.com/a:1 is whole again",
        f"{ID} could not be mended: no registry",
        "damaged: 1 of 1 layer in 2.0 s, every byte read",
    ]


async def test_prune(run: Run, capsys: pytest.CaptureFixture[str]) -> None:
    assert await run(Images(), "prune") == 0
    assert capsys.readouterr().out == f"removed {'a' * 13}\n3 layers removed, 1.0 MiB freed\n"
    await run(Images(), "prune", "--dry-run")
    assert capsys.readouterr().out == f"would remove {'a' * 13}\n"


class Terminal(io.StringIO):
    def isatty(self) -> bool:
        return True


def layer(number: int, done: int, state: str) -> admin.LayerProgress:
    return admin.LayerProgress(digest=f"sha256:{number:064}", size=1 << 20, done=done, state=state)


def test_bars_on_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("COLUMNS", "120")
    monkeypatch.setenv("TERM", "xterm")
    out = Terminal()
    with bars(quiet=False, to=out) as shown:
        shown.update(admin.Progress(layers=[layer(1, 1 << 19, "downloading"), layer(2, 0, "waiting")]))
        shown.update(admin.Progress(layers=[layer(1, 1 << 20, "unpacking"), layer(2, 1 << 20, "present")]))
        shown.complete()
    last = out.getvalue().splitlines()[-3:]
    assert any("0" * 12 in line and "1.0/1.0 MiB" in line and "done" in line for line in last), last
    assert any("present" in line for line in last), last


def test_lines_where_nobody_watches() -> None:
    out = io.StringIO()
    lines = Lines(out)
    lines.update(admin.Progress(layers=[layer(1, 5, "downloading"), layer(2, 1 << 20, "present")]))
    lines.update(admin.Progress(layers=[layer(1, 1 << 20, "done"), layer(2, 1 << 20, "present")]))
    lines.complete()
    assert out.getvalue().splitlines() == ["0" * 12 + "  1.0 MiB  present", "0" * 12 + "  1.0 MiB  done"]
    quiet = io.StringIO()
    with bars(quiet=True, to=quiet) as shown:
        shown.update(admin.Progress(layers=[layer(1, 5, "done")]))
        shown.complete()
    assert quiet.getvalue() == ""
