"""The image store's index as it is on disk, looked at without a server and without changing a byte."""

from __future__ import annotations

import os
import sqlite3
from pathlib import Path
from urllib.parse import quote

from bridge.cli.findings import Finding, State
from bridge.images import index_file

_MEND = "systemctl start cri-bridge, then cri-bridge image check --full --repair"


def check(root: Path) -> Finding:
    """Whether pages, references and documents of the index are sound, and every layer has its directory. Blocks."""
    path = root / index_file.INDEX
    if not path.exists():
        return Finding("images", "store", State.ADVICE, f"{path} is not there: the next start makes an empty store")
    try:
        connection = sqlite3.connect(f"file:{quote(str(path))}?mode=ro", uri=True, isolation_level=None)
        try:
            faults = index_file.faults(connection) + [f"document {digest} is damaged" for digest in index_file.damaged_blobs(connection)]
            layers = {str(row[0]) for row in connection.execute("SELECT id FROM layers")}
        finally:
            connection.close()
        there = set(os.listdir(root / "layers"))
    except (sqlite3.Error, OSError) as exc:
        return Finding(
            "images", "store", State.MISSING, f"{path}: {exc}", "systemctl start cri-bridge: it is set aside, and images pulled again"
        )
    faults += [f"layer {name} has no directory" for name in sorted(layers - there)]
    if faults:
        return Finding("images", "store", State.MISSING, "; ".join(faults[:5]), _MEND)
    return Finding("images", "store", State.OK, f"{len(layers)} layers (the index alone: the server compares their files, too)")
