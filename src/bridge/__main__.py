"""Entry point of the ``cri-bridge`` command and of ``python -m bridge``.

It chooses the process before anything is imported: the monitor must stay small, so it never meets the command line's
parser, the configuration's models or gRPC.
"""

from __future__ import annotations

import gc
import sys
from collections.abc import Sequence


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with ``arguments`` (default: the process's own) and return its exit code."""
    words = list(sys.argv[1:] if arguments is None else arguments)
    if words[:1] == ["monitor"]:
        from bridge.monitor.main import main as monitor

        return monitor(words[1:])
    if "serve" in words:
        # What a start makes stays: collecting while it is made costs a seventh of the time to the first answer. The daemon
        # collects once and turns the collector on when it is ready.
        gc.disable()
    from bridge.cli.main import main as command

    return command(words)


if __name__ == "__main__":
    sys.exit(main())
