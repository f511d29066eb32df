"""A server that sends back what it gets, for the benchmark of port-forwards: `python -m benchmarks.echo`, run in a pod's network.

Prints its port. One process with blocking threads: it must not be what is measured.
"""

from __future__ import annotations

import socket
import threading

_ROOM = 256 << 10


def _serve(connection: socket.socket) -> None:
    buffer = memoryview(bytearray(_ROOM))
    with connection:
        try:
            while size := connection.recv_into(buffer):
                connection.sendall(buffer[:size])
            connection.shutdown(socket.SHUT_WR)
        except OSError:
            return  # the other side does not want the rest


def main() -> None:
    """Serve until the process is ended."""
    with socket.create_server(("127.0.0.1", 0), backlog=1024) as listener:
        print(listener.getsockname()[1], flush=True)
        while True:
            connection, _ = listener.accept()
            threading.Thread(target=_serve, args=(connection,), daemon=True).start()


if __name__ == "__main__":
    main()
