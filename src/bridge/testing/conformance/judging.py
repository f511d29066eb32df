"""From how a spec ended to what that says of the handler. Pure."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from bridge.errors import BridgeError
from bridge.ports.runtime import Support
from bridge.testing.conformance.catalogue import Spec
from bridge.testing.conformance.results import Declared, Outcome
from bridge.testing.conformance.stage import NotHere


def judge(
    spec: Spec,
    declared: Sequence[Declared],
    limits: Mapping[str, str],
    failure: Exception | None,
    left: Sequence[str] = (),
    log: str = "",
) -> tuple[Outcome, str]:
    """The outcome, and why it did not pass.

    ``failure``: what the spec raised; ``left``: what it left behind. A spec that passes although the handler declares that it
    can't, or although it is among the known ``limits``, fails: what is said of the handler is wrong then.
    """
    if isinstance(failure, NotHere):
        return Outcome.IMPOSSIBLE, str(failure)
    if failure is None and left:
        failure = AssertionError("left behind: " + "; ".join(left))
    support = {each.ability: each for each in declared}
    lacking = [support[each] for each in spec.needs if each in support and support[each].support == Support.UNSUPPORTED]
    if lacking:
        said = "; ".join(f"{each.ability}: {each.detail or 'no evidence given'}" for each in lacking)
        if failure is None:
            return Outcome.FAILED, f"the handler declares that it can't, and it can: {said}"
        return Outcome.UNSUPPORTED, f"{said} (tried all the same: {describe(failure)})"
    limit = limits.get(spec.name)
    if limit is not None:
        if failure is None:
            return Outcome.FAILED, f"it is listed as a known limit ({limit}), and passes: take it off the list"
        return Outcome.LIMIT, f"{limit} (seen: {describe(failure)})"
    return (Outcome.PASSED, "") if failure is None else (Outcome.FAILED, describe(failure, log))


def describe(failure: BaseException, log: str = "") -> str:
    """A failure in words: its own first, its kind where the words don't tell; ``log`` for those that nobody expected."""
    if isinstance(failure, BaseExceptionGroup) and len(failure.exceptions) == 1:
        return describe(failure.exceptions[0], log)
    words = str(failure).strip()
    if isinstance(failure, AssertionError | BridgeError) and words:
        return words
    if isinstance(failure, TimeoutError):
        return words or "it took too long"
    return f"{type(failure).__name__}: {words}" + (f"\nthe server's last words:\n{log}" if log else "")
