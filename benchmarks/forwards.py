"""Short connections through one port-forward session, as a client that polls a pod's server makes them: how many a second, at what cost.

Client and echo server share the machine's processors with the server that is measured, so its own processor time for a connection is
given beside the rate: that is steady also on a machine with other work.
"""

from __future__ import annotations

import time
from collections.abc import Sequence

from anyio.to_thread import run_sync

from bridge.testing.stream_client import Spdy

from .report import Table
from .servers import Running
from .stream_target import FORWARD, forwarded_pair, targets_of

AT_ONCE = 16
"""Forwarded connections that the client keeps open while it makes many."""


async def measure(servers: Sequence[Running], *, rounds: int, connections: int) -> list[Table]:
    """``rounds`` sessions of ``connections`` on each server, turn by turn."""
    names = [server.name for server in servers]
    rates = Table("Port-forward: connections one after another", "a second, more is better", names, shares=(0.5,))
    costs = Table("Port-forward: the server's processor time for a connection", "µs", names, shares=(0.5,))
    rates.notes.append("The ratio is ours over theirs: above 1 is faster.")
    label = f"{connections} connections, {AT_ONCE} at once"
    async with targets_of(servers) as targets:
        for number in range(-1, rounds):
            for target in targets:
                server, url = target.server, await target.forward_url()
                used = server.workspace.cpu_ms(server.name)
                rate = await run_sync(connect_often, url, target.port, connections)
                used = server.workspace.cpu_ms(server.name) - used
                if number >= 0:
                    rates.add(label, server.name, rate)
                    costs.add(label, server.name, used * 1000 / connections)
    return [rates, costs]


def connect_often(url: str, port: int, count: int) -> float:
    """Forwarded connections a second: each says a word and closes, and is done once it has heard the answer."""
    with Spdy(url, FORWARD) as client:
        begin = time.perf_counter()
        running: set[int] = set()
        for number in range(count):
            error, data = client.open(*forwarded_pair(port, number))
            client.send_frames(client.frame(error, b"", end=True) + client.frame(data, b"ping", end=True))
            running.add(data)
            if len(running) == AT_ONCE:
                client.until(lambda: not running.isdisjoint(client.counts))
                running.difference_update(client.counts)
        client.until(lambda: running <= client.counts.keys())
        elapsed = time.perf_counter() - begin
        return count / elapsed
