"""The crash sweep: ``python -m tests.crash`` (scripts/test-crash). Needs root, a runtime and what the integration tests need.

For every failpoint of every operation, with every fault: the operation is interrupted there, the server is restarted where it
was killed, a kubelet tries again until it has what it wants, and then nothing may be left and nothing may be unknown.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import signal
import sys
import tempfile
import time
import traceback
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import anyio
from grpclib.const import Status

from bridge.client import CriError
from bridge.plugins import Plugins
from tests.crash.chaos import FAULTS_AMID, STEPS
from tests.crash.operations import OPERATIONS
from tests.crash.stages import FAULTS, Operation
from tests.crash.sweep import HANDLERS, Case, Sweeper, cases, sweeper, timed

_DONE = re.compile(r"(?:ok|not reached) (.*) \([\d.]+ s\)$")


def _arguments(argv: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="scripts/test-crash", description=__doc__)
    words = f"{', '.join(HANDLERS)}, or the name of an installed plugin's runtime; may be given again (default: runc and crun)"
    parser.add_argument("--handler", action="append", help=words)
    parser.add_argument("--options", type=json.loads, default={}, metavar="JSON", help="of a plugin's handler, as an object")
    parser.add_argument("--operation", action="append", choices=[each.name for each in OPERATIONS], help="default: all")
    parser.add_argument("--fault", action="append", choices=FAULTS, help="default: all")
    parser.add_argument("--point", default="", help="only points whose name has this in it")
    parser.add_argument("--sample", type=int, default=0, metavar="N", help="N cases of each operation, chosen by --seed, instead of all")
    parser.add_argument("--seen", action="append", type=Path, default=[], help="leave out what this output of an earlier run has as done")
    parser.add_argument("--seed", type=int, default=2026)
    parser.add_argument("--chaos", type=int, default=0, metavar="N", help="instead of the sweep, N random operations amid faults")
    parser.add_argument("--every", type=float, default=1.0, metavar="SECONDS", help="how often something goes wrong amid chaos")
    parser.add_argument("--logs", type=Path, metavar="DIR", help="copy the logs of server and monitor here at the end")
    parser.add_argument("--list", action="store_true", help="list the points and end")
    given = parser.parse_args(argv)
    plugins = Plugins()
    plugins.load_entry_points()
    unknown = [each for each in given.handler or () if each not in (*HANDLERS, *plugins.runtimes)]
    if unknown:
        parser.error(f"--handler: no plugin serves {unknown[0]}; there are {', '.join(dict.fromkeys((*HANDLERS, *plugins.runtimes)))}")
    if given.options and not set(given.handler or ()) - set(HANDLERS):
        parser.error(f"--options: are of a plugin's handler; {', '.join(HANDLERS)} have theirs")
    return given


def main(argv: Sequence[str]) -> int:
    """Returns the exit code: 1 when a case failed."""
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, signal.default_int_handler)  # also in the background of a shell: what was started is ended
    options = _arguments(argv)
    chosen = [each for each in OPERATIONS if not options.operation or each.name in options.operation]
    counts: Counter[str] = Counter()
    began = time.monotonic()
    handlers = options.handler or ["runc", "crun"]
    with (
        tempfile.TemporaryDirectory(prefix="cbt-sweep-") as directory,
        sweeper(Path(directory), handlers, options.logs, options.options) as swept,
    ):
        if options.chaos:
            anyio.run(_chaos, swept, handlers, options)
            return 0
        for handler in handlers:
            for operation in chosen:
                anyio.run(_operation, swept, handler, operation, options, counts)
    print(f"{counts['points']} points, {counts['runs']} runs, {counts['missed']} not reached, {counts['failed']} failed, {timed(began)}")
    return 1 if counts["failed"] else 0


async def _chaos(swept: Sweeper, handlers: Sequence[str], options: argparse.Namespace) -> None:
    began = time.monotonic()
    counts: Counter[str] = Counter()

    async def tell() -> None:
        while True:
            await anyio.sleep(60)
            print(f"{sum(counts[each] for each in STEPS)} operations, {timed(began)}", flush=True)

    async with anyio.create_task_group() as group:
        group.start_soon(tell)
        await swept.chaos(handlers, options.seed, options.chaos, every=options.every, counts=counts)
        group.cancel_scope.cancel()
    print(dict(counts))
    print(f"{options.chaos} operations, {sum(counts[each] for each in FAULTS_AMID)} faults, {timed(began)}")


async def _operation(swept: Sweeper, handler: str, operation: Operation, options: argparse.Namespace, counts: Counter[str]) -> None:
    try:
        points = [point for point in await swept.points(handler, operation) if options.point in point]
    except CriError as exc:
        if exc.code not in (Status.UNIMPLEMENTED, Status.FAILED_PRECONDITION):  # the latter: a runtime without CRIU
            raise
        print(f"{handler} {operation.name}: {exc.message}")
        await swept.renew()
        return
    counts["points"] += len(points)
    print(f"{handler} {operation.name}: {len(points)} points", flush=True)
    if options.list:
        print("\n".join(f"  {point}" for point in points))
        return
    wanted = list(cases(handler, operation, points, options.fault or FAULTS))
    if options.sample and options.sample < len(wanted):
        wanted = random.Random(options.seed).sample(wanted, options.sample)
    seen = _seen(options.seen)
    for case in wanted:
        if str(case) not in seen:
            await _case(swept, case, counts)


def _seen(outputs: Sequence[Path]) -> set[str]:
    """The cases that went well, or whose point was not come to, by these outputs."""
    found = (_DONE.match(line) for output in outputs for line in output.read_text().splitlines())
    return {match[1] for match in found if match}


async def _case(swept: Sweeper, case: Case, counts: Counter[str]) -> None:
    counts["runs"] += 1
    began = time.monotonic()
    try:
        came = await swept.run(case)
    except Exception:  # noqa: BLE001 - the sweep goes on and says at the end how many failed
        counts["failed"] += 1
        print(f"FAILED {case} ({timed(began)})\n{traceback.format_exc()}", flush=True)
        await swept.renew()
        return
    counts["missed"] += not came
    print(f"{'ok' if came else 'not reached'} {case} ({timed(began)})", flush=True)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
