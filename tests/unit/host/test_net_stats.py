from __future__ import annotations

from pathlib import Path

from bridge.host import net_stats
from bridge.host.net_stats import Interface

TEXT = """Inter-|   Receive                                                |  Transmit
 face |bytes    packets errs drop fifo frame compressed multicast|bytes    packets errs drop fifo colls carrier compressed
    lo:     100       1    0    0    0     0          0         0      100       1    0    0    0     0       0          0
  eth0: 1000000    5000    3    7    0     0          0         0  2000000    6000    4    8    0     0       0          0
 a:b@7:      1       2    0    0    0     0          0         0        3       4    0    0    0     0       0          0
"""


def test_interfaces_but_the_loopback() -> None:
    eth0, other = net_stats.parse(TEXT)
    assert eth0 == Interface("eth0", 1000000, 5000, 3, 7, 2000000, 6000, 4, 8)
    assert (other.name, other.rx_bytes, other.tx_bytes) == ("a:b@7", 1, 3)
    assert net_stats.parse("") == ()


async def test_a_namespace_that_is_gone_is_left_out(tmp_path: Path) -> None:
    assert await net_stats.read({"pod": tmp_path / "gone"}) == {}
    assert await net_stats.read({}) == {}
