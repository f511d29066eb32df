"""What a run of the suite found, as plain data: the source of every report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any

from bridge.ports.runtime import Support


class Outcome(StrEnum):
    """How a spec ended.

    PASSED; FAILED; LIMIT: fails as the plugin's list of known limits says; UNSUPPORTED: the runtime declares that it can't, and
    can't; IMPOSSIBLE: can't be tried on this host or server.
    """

    PASSED = "passed"
    FAILED = "failed"
    LIMIT = "limit"
    UNSUPPORTED = "unsupported"
    IMPOSSIBLE = "impossible"


@dataclass(frozen=True, slots=True)
class Result:
    """One spec's end. ``reason``: why it did not pass, first line first. ``notes``: what it measured or saw."""

    spec: str
    group: str
    purpose: str
    source: str
    outcome: Outcome
    seconds: float
    reason: str = ""
    notes: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class Declared:
    """An ability as the handler's probe found it."""

    ability: str
    support: str
    detail: str = ""


@dataclass(frozen=True, slots=True)
class Costs:
    """What a pod of one idle container costs. None: not measured.

    ``start_ms``: median of RunPodSandbox, CreateContainer and StartContainer together, ``pods`` of them; ``memory_bytes``: PSS of all
    that exists because of a pod, but its workload; ``cpu_millicores``: of the same, while the pod idles.
    """

    start_ms: float | None = None
    start_p95_ms: float | None = None
    run_ms: float | None = None
    pods: int = 0
    memory_bytes: int | None = None
    cpu_millicores: float | None = None


@dataclass(frozen=True, slots=True)
class Report:
    """A whole run. ``left_behind``: what was still there when server and monitor had ended."""

    handler: str
    plugin: str
    version: str
    path: str
    server: str
    host: str
    declared: tuple[Declared, ...] = ()
    results: tuple[Result, ...] = ()
    costs: Costs = field(default_factory=Costs)
    left_behind: tuple[str, ...] = ()
    fault: str = ""

    @property
    def passed(self) -> bool:
        """Whether the handler conforms: nothing failed and nothing was left behind."""
        return not (self.fault or self.left_behind or any(each.outcome is Outcome.FAILED for each in self.results))

    @property
    def counts(self) -> Mapping[Outcome, int]:
        """How many specs ended in each way."""
        return Counter(each.outcome for each in self.results)

    @property
    def missing(self) -> Sequence[Declared]:
        """The abilities that the handler declares unsupported."""
        return [each for each in self.declared if each.support == Support.UNSUPPORTED]

    def as_json(self) -> Mapping[str, Any]:
        """Everything, as JSON can hold it."""
        return {"passed": self.passed, "counts": {str(kind): number for kind, number in self.counts.items()}, **asdict(self)}


def report_of(data: Mapping[str, Any]) -> Report:
    """What ``as_json`` returned."""
    own = {key: value for key, value in data.items() if key not in ("passed", "counts", "declared", "results", "costs", "left_behind")}
    results = tuple(Result(**{**each, "outcome": Outcome(each["outcome"]), "notes": tuple(each["notes"])}) for each in data["results"])
    declared = tuple(Declared(**each) for each in data["declared"])
    return Report(**own, declared=declared, results=results, costs=Costs(**data["costs"]), left_behind=tuple(data["left_behind"]))
