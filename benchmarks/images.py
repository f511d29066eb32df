"""The two images of the benchmark as OCI archives, made here from the host's static binaries: no registry, no network."""

from __future__ import annotations

import tarfile
from pathlib import Path

from bridge.testing.images import Entry, Layout, tar, write_busybox_layout

WORKLOAD = "localhost/bench/busybox:1"
PAUSE = "localhost/bench/pause:1"
"""What a peer that needs a pause image is given: a static init that waits (`catatonit -P`)."""

_PAUSE_BINARY = Path("/usr/bin/catatonit")


def write_layouts(directory: Path) -> tuple[Path, Path]:
    """Write the archives of WORKLOAD and PAUSE to ``directory`` unless they are there; returns their paths."""
    workload, pause = directory / "workload.tar", directory / "pause.tar"
    if not workload.exists():
        write_busybox_layout(directory / "workload", WORKLOAD)
        _archive(directory / "workload", workload)
    if not pause.exists():
        with Layout(directory / "pause") as layout:
            layout.image(PAUSE, [tar([Entry("pause", _PAUSE_BINARY.read_bytes(), mode=0o755)])], config={"Entrypoint": ["/pause", "-P"]})
        _archive(directory / "pause", pause)
    return workload, pause


def _archive(layout: Path, archive: Path) -> None:
    with tarfile.open(archive, "w") as out:
        for path in sorted(layout.rglob("*")):
            out.add(path, path.relative_to(layout).as_posix(), recursive=False)
