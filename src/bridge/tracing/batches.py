"""From ended spans to the collector: a bounded queue, and a thread of its own that sends batches.

A thread and not a task, as sending blocks for as long as a collector likes; a daemon thread, so that one that hangs does not hold up the
end of the process. The SDK's own processor waits 30 s for it, and logs each span that finds its queue full.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass

from opentelemetry.context import Context
from opentelemetry.sdk.trace import ReadableSpan, Span, SpanProcessor
from opentelemetry.sdk.trace.export import SpanExporter, SpanExportResult

from bridge import log

_logger = log.get("tracing")
_LONGEST_PAUSE = 60.0


@dataclass(frozen=True, slots=True)
class Pace:
    """Spans that may wait, spans in one batch, seconds between batches that aren't full."""

    queue: int = 2048
    batch: int = 512
    period: float = 5.0


class Batches(SpanProcessor):
    """Sends what has ended through ``exporter``. A batch that can't be sent is dropped, and what comes while too much waits.

    ``why`` gives the reason of the last failure. The first failure and the first success after it are logged, nothing between.
    """

    def __init__(self, exporter: SpanExporter, pace: Pace, why: Callable[[], str]) -> None:
        self.dropped = 0
        self._exporter = exporter
        self._pace = pace
        self._why = why
        self._waiting: deque[ReadableSpan] = deque()
        self._wake = threading.Event()
        self._closing = False
        self._over = False
        self._failures = 0
        self._thread = threading.Thread(target=self._send_all, name="tracing", daemon=True)
        self._thread.start()

    def on_start(self, span: Span, parent_context: Context | None = None) -> None:
        """Nothing to do."""

    def on_end(self, span: ReadableSpan) -> None:
        """Queue it, in any thread, without waiting."""
        if span.context is None or not span.context.trace_flags.sampled:
            return
        if self._closing or len(self._waiting) >= self._pace.queue:
            self.dropped += 1
            return
        self._waiting.append(span)
        if len(self._waiting) >= self._pace.batch and not self._wake.is_set() and not self._failures:
            self._wake.set()

    def close(self, seconds: float) -> bool:
        """Send what waits, for at most so long; whether all of it was sent. Blocks."""
        self._closing = True
        self._wake.set()
        self._thread.join(seconds)
        self._over = True
        self._exporter.shutdown()  # ends a pause between tries; a request under way is left alone
        return not self._waiting and not self._thread.is_alive()

    def shutdown(self) -> None:
        """As the SDK calls it. ``close`` is what has a deadline."""

    def force_flush(self, timeout_millis: int = 30000) -> bool:  # noqa: ARG002 - the signature is the SDK's
        """As the SDK calls it. Nothing is sent out of turn."""
        return not self._waiting

    def _send_all(self) -> None:
        last = False
        while not last:
            self._wake.wait(self._pause())
            self._wake.clear()
            last = self._closing  # what is queued before that is sent
            self._send_waiting()

    def _pause(self) -> float:
        return self._pace.period if not self._failures else min(self._pace.period * 2**self._failures, _LONGEST_PAUSE)

    def _send_waiting(self) -> None:
        while self._waiting and not self._over:
            batch = [self._waiting.popleft() for _ in range(min(len(self._waiting), self._pace.batch))]
            if not self._send(batch):
                return

    def _send(self, batch: list[ReadableSpan]) -> bool:
        try:
            sent = self._exporter.export(batch) is SpanExportResult.SUCCESS
            reason = "" if sent else self._why()
        except Exception as exc:  # noqa: BLE001 - whatever it is, the next batch may go
            sent, reason = False, f"{type(exc).__name__}: {exc}"
        if not sent:
            self.dropped += len(batch)
            if not self._failures:
                _logger.warning("traces can't be sent and are dropped until that works again: %s", reason or "no reason given")
            self._failures = min(self._failures + 1, 10)
        elif self._failures:
            _logger.info("traces are sent again; %d spans were dropped", self.dropped)
            self._failures, self.dropped = 0, 0
        return sent
