"""Work that the kernel may hold for ever, in a thread that is left to itself then.

Reading a file of a cgroup can be such work: in an uninterruptible wait no signal reaches a thread, and nobody can end it.
"""

from __future__ import annotations

import asyncio
import contextlib
import threading
from collections.abc import Callable

import anyio


async def unless_held(work: Callable[[], None], seconds: float, late: Callable[[], None]) -> bool:
    """Run ``work`` in a fresh thread; whether it has ended within ``seconds``. Raises what it raises.

    A thread that has not is left alone, and ``late`` is called by the event loop when it ends after all. Cancellation waits for either:
    what the thread uses is in use until then.
    """
    loop = asyncio.get_running_loop()
    done: asyncio.Future[None] = loop.create_future()
    left = False

    def finish(failure: BaseException | None) -> None:
        if left:
            late()
        elif failure is not None:
            done.set_exception(failure)
        else:
            done.set_result(None)

    def body() -> None:
        failure = None
        try:
            work()
        except BaseException as exc:  # noqa: BLE001 - carried to the awaiting task
            failure = exc
        with contextlib.suppress(RuntimeError):  # the loop has ended meanwhile
            loop.call_soon_threadsafe(finish, failure)

    threading.Thread(target=body, name="perhaps held", daemon=True).start()
    cancelled: asyncio.CancelledError | None = None
    end = loop.time() + seconds
    with anyio.CancelScope(shield=True):
        while not done.done() and (remaining := end - loop.time()) > 0:
            try:
                await asyncio.wait([done], timeout=remaining)
            except asyncio.CancelledError as exc:
                cancelled = exc
    left = not done.done()
    if cancelled is not None:
        if not left:
            done.exception()  # seen: the cancellation is what propagates
        raise cancelled
    if not left:
        done.result()
    return not left
