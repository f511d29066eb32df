"""What the end of a spec says of the handler."""

import pytest

from bridge.errors import HostError, Unsupported
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import Spec
from bridge.testing.conformance.judging import describe, judge
from bridge.testing.conformance.results import Declared, Outcome
from bridge.testing.conformance.stage import NotHere, Stage


async def check(stage: Stage) -> None:
    raise NotImplementedError


PLAIN = Spec("plain", "group", "What it is for", "CRI", check)
NEEDS = Spec("needs", "group", "What it is for", "CRI", check, needs=(Ability.UPDATE,))
HAS = [Declared("update", "emulated", "by us")]
LACKS = [Declared("update", "unsupported", "its features say so")]
LIMITS = {"plain": "it has no such thing"}
WRONG = AssertionError("4 is not 3")


@pytest.mark.parametrize(
    ("spec", "declared", "limits", "failure", "left", "outcome", "words"),
    [
        (PLAIN, HAS, {}, None, [], Outcome.PASSED, ""),
        (PLAIN, HAS, {}, WRONG, [], Outcome.FAILED, "4 is not 3"),
        (PLAIN, HAS, {}, None, ["mount: /x"], Outcome.FAILED, "left behind: mount: /x"),
        (PLAIN, HAS, {}, NotHere("no network"), [], Outcome.IMPOSSIBLE, "no network"),
        (PLAIN, HAS, LIMITS, WRONG, [], Outcome.LIMIT, "it has no such thing (seen: 4 is not 3)"),
        (PLAIN, HAS, LIMITS, None, [], Outcome.FAILED, "it is listed as a known limit (it has no such thing), and passes"),
        (NEEDS, HAS, {}, None, [], Outcome.PASSED, ""),
        (NEEDS, HAS, {}, Unsupported("no update"), [], Outcome.FAILED, "no update"),
        (
            NEEDS,
            LACKS,
            {},
            Unsupported("no update"),
            [],
            Outcome.UNSUPPORTED,
            "update: its features say so (tried all the same: no update)",
        ),
        (NEEDS, LACKS, {}, None, [], Outcome.FAILED, "the handler declares that it can't, and it can: update"),
        (NEEDS, [], {}, None, [], Outcome.PASSED, ""),
    ],
)
def test_verdicts(
    spec: Spec, declared: list[Declared], limits: dict[str, str], failure: Exception | None, left: list[str], outcome: Outcome, words: str
) -> None:
    found, reason = judge(spec, declared, limits, failure, left)
    assert found is outcome
    assert reason.startswith(words)
    assert bool(reason) is bool(words)


@pytest.mark.parametrize(
    ("failure", "words"),
    [
        (HostError("can't"), "can't"),
        (TimeoutError(), "it took too long"),
        (ExceptionGroup("several", [AssertionError("one")]), "one"),
        (KeyError("name"), "KeyError: 'name'\nthe server's last words:\nlog"),
        (AssertionError(""), "AssertionError: \nthe server's last words:\nlog"),
    ],
)
def test_failures_in_words(failure: Exception, words: str) -> None:
    assert describe(failure, "log") == words
