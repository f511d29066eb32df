"""Single flights, rollbacks, supervised tasks and the change feed, cancelled and failed at each step."""

from __future__ import annotations

import logging
import math
from collections.abc import Awaitable, Callable

import anyio
import pytest

from bridge.aio import Broadcast, Rollback, SingleFlight, Supervisor, describe
from bridge.errors import LimitExceeded, NotFound, Unavailable


class Work:
    """A unit of work that a test lets go on, and that counts its runs."""

    def __init__(self, result: str = "done", error: Exception | None = None) -> None:
        self.started = anyio.Event()
        self.go = anyio.Event()
        self.ended = anyio.Event()
        self.cancelled = False
        self.runs = 0
        self._result = result
        self._error = error

    async def __call__(self) -> str:
        self.runs += 1
        self.started.set()
        try:
            await self.go.wait()
        except BaseException:
            self.cancelled = True
            raise
        finally:
            self.ended.set()
        if self._error:
            raise self._error
        return self._result


@pytest.fixture
def quiet(caplog: pytest.LogCaptureFixture) -> pytest.LogCaptureFixture:
    caplog.set_level(logging.INFO, logger="bridge")
    return caplog


# --- Supervisor


async def test_leaving_cancels_and_waits_for_every_task() -> None:
    work = Work()
    async with Supervisor() as supervisor:
        supervisor.spawn("one", work)
        await work.started.wait()
    assert work.cancelled


async def test_a_failing_task_is_logged_and_leaves_its_siblings_alone(quiet: pytest.LogCaptureFixture) -> None:
    good, bad = Work(), Work(error=NotFound("gone"))
    async with Supervisor() as supervisor:
        supervisor.spawn("good", good)
        supervisor.spawn("bad", bad)
        bad.go.set()
        await bad.ended.wait()
        good.go.set()
        await good.ended.wait()
    assert not good.cancelled
    assert "task bad failed" in quiet.text


async def test_nothing_can_be_spawned_before_or_after() -> None:
    supervisor = Supervisor("test")
    with pytest.raises(Unavailable):
        supervisor.spawn("early", Work())
    async with supervisor:
        pass
    with pytest.raises(Unavailable, match="test is shutting down"):
        supervisor.spawn("late", Work())


async def test_an_error_in_the_body_comes_out_as_it_is() -> None:
    async def body() -> None:
        async with Supervisor() as supervisor:
            supervisor.spawn("one", Work())
            raise NotFound("body")

    with pytest.raises(NotFound, match="body"):
        await body()


# --- SingleFlight


async def test_callers_of_a_key_share_one_run() -> None:
    work = Work()
    results: list[str] = []
    async with Supervisor() as supervisor, anyio.create_task_group() as group:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")

        async def call() -> None:
            results.append(await flights.join("pod", work))

        for _ in range(3):
            group.start_soon(call)
        await work.started.wait()
        await anyio.wait_all_tasks_blocked()
        assert len(flights) == 1
        work.go.set()
    assert results == ["done"] * 3
    assert work.runs == 1


async def test_keys_fly_apart_and_nothing_is_cached() -> None:
    work = Work()
    work.go.set()
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")
        await flights.join("a", work)
        await flights.join("b", work)
        await flights.join("a", work)
    assert work.runs == 3


async def test_a_caller_that_leaves_does_not_stop_the_work() -> None:
    work = Work()
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")
        with anyio.move_on_after(0.01):
            await flights.join("pod", work)
        assert not work.cancelled
        async with anyio.create_task_group() as group:  # the retry joins the run that the first call began
            group.start_soon(flights.join, "pod", work)
            await anyio.wait_all_tasks_blocked()
            work.go.set()
        assert work.runs == 1


async def test_every_waiter_gets_the_error_and_the_supervisor_none(quiet: pytest.LogCaptureFixture) -> None:
    work = Work(error=NotFound("no image"))
    caught: list[str] = []
    async with Supervisor() as supervisor, anyio.create_task_group() as group:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")

        async def call() -> None:
            with pytest.raises(NotFound) as error:
                await flights.join("pod", work)
            caught.append(str(error.value))

        group.start_soon(call)
        group.start_soon(call)
        await work.started.wait()
        await anyio.wait_all_tasks_blocked()
        work.go.set()
    assert caught == ["no image"] * 2
    assert "failed" not in quiet.text


async def test_with_finite_linger_the_last_caller_takes_the_work_along() -> None:
    work = Work()
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "pull", linger=0.01)
        with anyio.move_on_after(0.01):
            await flights.join("image", work)
        with anyio.fail_after(2):
            await work.ended.wait()
            await flights.wait_idle()
    assert work.cancelled


async def test_a_caller_that_returns_within_the_linger_keeps_the_work() -> None:
    work = Work()
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "pull", linger=0.05)
        with anyio.move_on_after(0.01):
            await flights.join("image", work)
        async with anyio.create_task_group() as group:
            group.start_soon(flights.join, "image", work)
            await anyio.sleep(0.15)  # longer than the linger: the one thing here that only a clock can show
            assert not work.cancelled
            work.go.set()


async def test_lingering_starts_anew_with_the_last_caller_to_leave() -> None:
    work = Work()
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "pull", linger=0.2)
        started = anyio.current_time()
        with anyio.move_on_after(0.02):
            await flights.join("image", work)
        with anyio.move_on_after(0.1):
            await flights.join("image", work)
        with anyio.fail_after(2):
            await work.ended.wait()
        assert anyio.current_time() - started >= 0.3


async def test_cancel_all_reaches_waiters_as_unavailable() -> None:
    work = Work()
    async with Supervisor() as supervisor, anyio.create_task_group() as group:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")

        async def call() -> None:
            with pytest.raises(Unavailable, match="make pod was cancelled"):
                await flights.join("pod", work)

        group.start_soon(call)
        await work.started.wait()
        flights.cancel_all()
    assert work.cancelled


async def test_shutdown_tells_waiters_instead_of_leaving_them() -> None:
    work = Work()
    said: list[str] = []
    async with anyio.create_task_group() as group:
        async with Supervisor() as supervisor:
            flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")

            async def call() -> None:
                try:
                    await flights.join("pod", work)
                except Unavailable as exc:
                    said.append(str(exc))

            group.start_soon(call)
            await work.started.wait()
        assert work.cancelled
    assert len(said) == 1
    assert "shutting down" in said[0]


async def test_a_flight_cancelled_before_its_first_step_still_lands() -> None:
    """A task that is cancelled before it began never runs its body, so nobody would tell its waiters (asyncio)."""
    async with anyio.create_task_group() as group:
        async with Supervisor() as supervisor:
            flights: SingleFlight[str, str] = SingleFlight(supervisor, "make")

            async def call() -> None:
                with pytest.raises(Unavailable):
                    await flights.join("pod", Work())

            group.start_soon(call)
            await anyio.sleep(0)  # the caller spawned its flight in this very step of the loop; now the supervisor closes
        with anyio.fail_after(1):
            await flights.wait_idle()


async def test_join_after_shutdown_is_refused_and_leaves_no_flight() -> None:
    async with Supervisor() as supervisor:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "make", linger=math.inf)
    with pytest.raises(Unavailable):
        await flights.join("pod", Work())
    assert len(flights) == 0


async def test_leaving_a_lingering_flight_during_shutdown_keeps_the_cancellation() -> None:
    work = Work()
    left: list[BaseException] = []
    async with Supervisor() as supervisor, anyio.create_task_group() as group:
        flights: SingleFlight[str, str] = SingleFlight(supervisor, "pull", linger=1)

        async def call() -> None:
            try:
                await flights.join("image", work)
            except BaseException as exc:
                left.append(exc)
                raise

        group.start_soon(call)
        await work.started.wait()
        supervisor._closing = True
        group.cancel_scope.cancel()
    assert isinstance(left[0], anyio.get_cancelled_exc_class())


# --- Rollback


class Steps:
    """Undo steps that write down their names."""

    def __init__(self) -> None:
        self.ran: list[str] = []

    def step(self, name: str, error: Exception | None = None) -> Callable[[], Awaitable[None]]:
        async def undo() -> None:
            await anyio.sleep(0)  # an undo that waits must work under cancellation too
            self.ran.append(name)
            if error:
                raise error

        return undo


async def test_without_commit_every_step_runs_newest_first() -> None:
    steps = Steps()
    async with Rollback("make") as undo:
        for name in "abc":
            undo.push(name, steps.step(name))
    assert steps.ran == ["c", "b", "a"]


async def test_with_commit_none_runs() -> None:
    steps = Steps()
    async with Rollback("make") as undo:
        undo.push("a", steps.step("a"))
        undo.commit()
    assert steps.ran == []


async def test_the_first_error_is_the_one_that_comes_out(quiet: pytest.LogCaptureFixture) -> None:
    steps = Steps()

    async def make() -> None:
        async with Rollback("make") as undo:
            undo.push("a", steps.step("a"))
            undo.push("b", steps.step("b", error=OSError("device busy")))
            raise NotFound("original")

    with pytest.raises(NotFound, match="original"):
        await make()
    assert steps.ran == ["b", "a"]
    assert "undo step 'b' failed" in quiet.text
    assert "device busy" in quiet.text


@pytest.mark.parametrize("acquired", [0, 1, 2, 3])
async def test_cancelled_after_each_step_what_was_acquired_is_undone(acquired: int) -> None:
    steps = Steps()
    reached = anyio.Event()

    async def make() -> None:
        async with Rollback("make") as undo:
            for number in range(3):
                if number == acquired:
                    reached.set()
                    await anyio.sleep_forever()
                undo.push(str(number), steps.step(str(number)))
            reached.set()
            await anyio.sleep_forever()

    async with anyio.create_task_group() as group:
        group.start_soon(make)
        await reached.wait()
        group.cancel_scope.cancel()
    assert steps.ran == [str(number) for number in reversed(range(acquired))]


async def test_a_step_that_hangs_is_left_and_the_next_runs(quiet: pytest.LogCaptureFixture) -> None:
    steps = Steps()
    async with Rollback("make") as undo:
        undo.push("a", steps.step("a"))
        undo.push("b", steps.step("b", error=OSError("device busy")))
        undo.push("hangs", anyio.sleep_forever, timeout=0.01)
    assert steps.ran == ["b", "a"]
    assert undo.failures == ["hangs: it did not end within 0.01 s", "b: device busy"], "for the step that runs last to know"
    assert "undo step 'hangs' did not end within 0.01 s" in quiet.text


async def test_a_step_that_cancels_itself_does_not_stop_the_others() -> None:
    steps = Steps()

    async def times_out_inside() -> None:
        with anyio.fail_after(0.001):
            await anyio.sleep_forever()

    async with Rollback("make") as undo:
        undo.push("a", steps.step("a"))
        undo.push("b", times_out_inside)
    assert steps.ran == ["a"]


# --- Broadcast


async def test_subscribers_see_everything_published_meanwhile() -> None:
    feed: Broadcast[int] = Broadcast()
    feed.publish(0)
    async with feed.subscribe() as one, feed.subscribe() as two:
        feed.publish(1)
        feed.publish(2)
        for subscription in (one, two):
            seen = []
            async for item in subscription:
                seen.append(item)
                if len(seen) == 2:
                    break
            assert seen == [1, 2]
    feed.publish(3)


async def test_who_falls_behind_is_told_and_holds_nobody_up() -> None:
    feed: Broadcast[int] = Broadcast(limit=2)
    async with feed.subscribe() as slow, feed.subscribe() as quick:
        received: list[int] = []

        async def read() -> None:
            async for item in quick:
                received.append(item)  # noqa: PERF401 - ends by cancellation

        async with anyio.create_task_group() as group:
            group.start_soon(read)
            for number in range(5):
                feed.publish(number)
                await anyio.wait_all_tasks_blocked()
            group.cancel_scope.cancel()
        assert received == [0, 1, 2, 3, 4]
        seen: list[int] = []

        async def read_slowly() -> None:
            async for item in slow:
                seen.append(item)  # noqa: PERF401 - ends by the error

        with pytest.raises(LimitExceeded, match="fell behind"):
            await read_slowly()
        assert seen == [0, 1]


async def test_publishing_goes_on_after_a_subscriber_left() -> None:
    feed: Broadcast[int] = Broadcast(limit=1)
    async with feed.subscribe():
        pass
    feed.publish(1)
    assert not feed._subscriptions


def test_describe_flattens_groups() -> None:
    assert describe(ExceptionGroup("several", [NotFound("a"), OSError("b")])) == "ExceptionGroup(NotFound: a; OSError: b)"


async def test_cancel_waits_for_the_undo_of_one_flight() -> None:
    undone = []

    async def work() -> None:
        try:
            await anyio.sleep_forever()
        finally:
            with anyio.CancelScope(shield=True):
                await anyio.lowlevel.checkpoint()
                undone.append(True)

    async with Supervisor() as supervisor:
        flights: SingleFlight[str, None] = SingleFlight(supervisor, "test")
        await flights.cancel("nobody")
        async with anyio.create_task_group() as group:

            async def wait() -> None:
                with pytest.raises(Unavailable):
                    await flights.join("key", work)

            group.start_soon(wait)
            while "key" not in flights:
                await anyio.lowlevel.checkpoint()
            await anyio.lowlevel.checkpoint()
            await flights.cancel("key")
            assert undone == [True]
            assert "key" not in flights
