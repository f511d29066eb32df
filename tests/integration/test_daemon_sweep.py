"""A sample of the crash sweep (scripts/test-crash): operations interrupted at failpoints, a retry as a kubelet makes it, the leak audit."""

from __future__ import annotations

import functools
import random
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import anyio
import pytest

from tests.crash.checkpoint_operations import CHECKPOINT_OPERATIONS
from tests.crash.node_operations import NODE_OPERATIONS
from tests.crash.nursery import nursery
from tests.crash.operations import OPERATIONS
from tests.crash.stages import FAULTS
from tests.crash.stream_operations import STREAM_OPERATIONS
from tests.crash.sweep import Sweeper, cases, sweeper
from tests.integration.daemon_node import environment

pytestmark = [pytest.mark.root, pytest.mark.timeout(600)]
SEED = 20261122
OPERATIONS_AMID_CHAOS = 2000


def test_a_sample_of_the_crash_sweep(crun_hierarchy: None, tmp_path: Path) -> None:
    """Three faults of each operation, by turns, at points that the seed chooses, on runc and crun by turns; of streams and the node's own
    operations two faults each. scripts/test-crash tries them all.
    """
    with sweeper(tmp_path) as swept:
        anyio.run(_sample, swept)


def test_a_kubelet_amid_chaos(crun_hierarchy: None, tmp_path: Path) -> None:
    """Random operations of eight workers while servers and monitors are killed and errors injected; the model knows what must be true."""
    with sweeper(tmp_path) as swept:
        counts = anyio.run(functools.partial(swept.chaos, ["runc", "crun"], SEED, OPERATIONS_AMID_CHAOS))
    assert sum(counts[fault] for fault in ("kill-server", "kill-monitor", "kill-both", "kill-starting", "error")) > 5
    assert counts["StartContainer"] > OPERATIONS_AMID_CHAOS / 20


def test_all_who_wait_for_a_server_learn_how_it_ended(tmp_path: Path) -> None:
    """A fault's thread and the operation that restarts the server may both wait for it."""
    with nursery(environment()) as start, (tmp_path / "log").open("wb") as log, ThreadPoolExecutor(4) as threads:
        for _ in range(10):
            server = start(["--no-such-flag"], environment(), log)
            codes = list(threads.map(lambda _: server.wait(60), range(4)))  # noqa: B023 - they have ended before the next
            assert codes == [codes[0]] * 4
            server.kill()


async def _sample(swept: Sweeper) -> None:
    chance = random.Random(SEED)
    reached = 0
    runs = 0
    for turn, operation in enumerate(OPERATIONS):
        dumps = operation in CHECKPOINT_OPERATIONS  # which not every crun was built for
        few = dumps or operation in (*STREAM_OPERATIONS, *NODE_OPERATIONS)
        handlers = ("runc",) if dumps else (chance.choice(("runc", "crun")),) if few else ("runc", "crun")
        points = {handler: await swept.points(handler, operation) for handler in handlers}
        for number, fault in enumerate(chance.sample(operation.faults, 2) if few else FAULTS[turn % 2 :: 2]):
            handler = handlers[(turn // 2 + number) % len(handlers)]
            wanted = list(cases(handler, operation, points[handler], [fault]))
            if wanted:
                runs += 1
                reached += await swept.run(chance.choice(wanted))
    assert runs > 2 * len(OPERATIONS) - 4
    assert reached > runs / 2, "the points are where the server comes by"
