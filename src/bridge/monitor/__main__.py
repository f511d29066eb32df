"""``python -m bridge.monitor``: the monitor process, kept small."""

import sys

# asyncio loads OpenSSL if it can (4 MiB); the monitor speaks over unix sockets only.
sys.modules.setdefault("ssl", None)  # type: ignore[arg-type]

from bridge.monitor.main import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
