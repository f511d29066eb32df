"""The alert rules and the dashboard ask for metrics and labels that the server has, and each alert fires when it should, and only then."""

from __future__ import annotations

import json
import re
import shutil
import subprocess
from collections.abc import Iterator, Mapping
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest
import yaml
from prometheus_client import CollectorRegistry, GCCollector, ProcessCollector

from bridge.core.store import Store
from bridge.metrics.instruments import Instruments
from bridge.metrics.readings import FAMILIES
from bridge.ports.handlers import Handlers

DOCS = Path(__file__).parents[3] / "docs"
DASHBOARD = DOCS / "grafana" / "cri-bridge.json"
RULES = DOCS / "prometheus" / "cri-bridge.rules.yml"
CASES = Path(__file__).with_name("alerts.yml")
PROMTOOL = shutil.which("promtool")
with_promtool = pytest.mark.skipif(PROMTOOL is None, reason="needs promtool: Debian's package prometheus")
TARGET = {"job", "instance"}
"""Labels that Prometheus adds to all that it scrapes."""


@pytest.fixture(scope="module")
def known() -> Mapping[str, set[str]]:
    """The labels of each series that a server may have, by its name."""
    registry = CollectorRegistry()
    ProcessCollector(registry=registry)
    GCCollector(registry=registry)
    counted = Instruments(registry, cast("Store", SimpleNamespace()), cast("Handlers", SimpleNamespace(states=list)))
    labels = {name: set(given) for name, (_, given) in FAMILIES.items()}
    for metric in vars(counted).values():
        name = getattr(metric, "_name", None)
        if name is not None:
            ends = {"counter": ("_total",), "histogram": ("_bucket", "_sum", "_count")}[metric._type]
            labels |= {name + end: {*metric._labelnames, *(["le"] if end == "_bucket" else [])} for end in ends}
    for family in registry.collect():
        if not family.name.startswith("cri_bridge_"):
            labels |= {sample.name: set(sample.labels) for sample in family.samples}
    return labels


def rules() -> list[dict[str, Any]]:
    return [rule for group in yaml.safe_load(RULES.read_text("utf-8"))["groups"] for rule in group["rules"]]


def panels() -> list[dict[str, Any]]:
    return [panel for panel in json.loads(DASHBOARD.read_text("utf-8"))["panels"] if panel["type"] != "row"]


def wrong(query: str, words: str, known: Mapping[str, set[str]]) -> Iterator[str]:
    """What ``query`` asks for and the server does not have; ``words`` are shown with its answer, in double braces."""
    selectors = re.findall(r"\b((?:cri_bridge|process|python)_\w+)(?:\{([^}]*)\})?", query)
    if not selectors:
        yield f"{query}: no metric of the server"
    had: set[str] = set(TARGET)
    for name, matchers in selectors:
        if name not in known:
            yield f"{query}: there is no {name}"
            continue
        had |= known[name]
        yield from (f"{query}: {name} has no label {label}" for label in re.findall(r"(\w+)\s*[=!]~?", matchers) if label not in had)
    grouped = [{label.strip() for label in group.split(",")} for group in re.findall(r"\bby \(([^)]*)\)", query)]
    yield from (f"{query}: nothing has the label {label}" for group in grouped for label in group - had)
    left = had if not grouped and not re.search(r"\b(sum|min|max)\(", query) else set().union(*grouped)
    shown = re.findall(r"\{\{\s*(?:\$labels\.)?(\w+)\s*\}\}", words)
    yield from (f"{query}: {label} is shown, and is no label of the answer" for label in shown if label not in left - {"le"})


def test_rules_and_dashboard_ask_for_what_there_is(known: Mapping[str, set[str]]) -> None:
    found = [each for rule in rules() for each in wrong(rule["expr"], json.dumps(rule["annotations"]), known)]
    for panel in panels():
        found += [each for target in panel["targets"] for each in wrong(target["expr"], target["legendFormat"], known)]
    assert found == []


@pytest.mark.parametrize(
    ("query", "words", "told"),
    [
        ("cri_bridge_handler_enabld == 0", "", "there is no cri_bridge_handler_enabld"),
        ("rate(cri_bridge_rpcs[5m])", "", "there is no cri_bridge_rpcs"),
        ('cri_bridge_rpcs_total{status="OK"}', "", "cri_bridge_rpcs_total has no label status"),
        ('cri_bridge_rpcs_total{code!~"OK", node="x"}', "", "has no label node"),
        ("sum by (le, registry) (rate(cri_bridge_rpc_duration_seconds_bucket[5m]))", "", "nothing has the label registry"),
        ("sum by (rpc) (cri_bridge_rpcs_total)", "{{handler}}", "handler is shown"),
        ("sum(cri_bridge_rpcs_total)", "{{ $labels.rpc }}", "rpc is shown"),
        ("cri_bridge_leftovers", "{{ $labels.handler }}", "handler is shown"),
        ("up == 0", "", "no metric of the server"),
    ],
)
def test_a_query_for_what_there_is_not_is_found(known: Mapping[str, set[str]], query: str, words: str, told: str) -> None:
    assert any(told in each for each in wrong(query, words, known))


def test_every_metric_of_the_server_is_on_the_dashboard(known: Mapping[str, set[str]]) -> None:
    asked = {name for panel in panels() for target in panel["targets"] for name in re.findall(r"\bcri_bridge_\w+", target["expr"])}
    ours = {re.sub(r"_(bucket|sum|count)$", "", name) for name in known if name.startswith("cri_bridge_")}
    assert {name for name in ours if not any(each.startswith(name) for each in asked)} == set()


def test_panels_have_places_of_their_own_and_ids_and_sources() -> None:
    every = json.loads(DASHBOARD.read_text("utf-8"))["panels"]
    assert len({panel["id"] for panel in every}) == len(every)
    taken: set[tuple[int, int]] = set()
    for panel in every:
        place = panel["gridPos"]
        cells = {(x, y) for x in range(place["x"], place["x"] + place["w"]) for y in range(place["y"], place["y"] + place["h"])}
        assert max(x for x, _ in cells) < 24
        assert not cells & taken, panel["title"]
        taken |= cells
    assert {target["datasource"]["uid"] for panel in panels() for target in panel["targets"]} == {"${source}"}


def test_every_alert_is_tried_and_is_in_the_documents() -> None:
    names = [rule["alert"] for rule in rules()]
    fired: dict[str, list[bool]] = {name: [] for name in names}
    for case in yaml.safe_load(CASES.read_text("utf-8"))["tests"]:
        for tried in case["alert_rule_test"]:
            fired[tried["alertname"]].append(bool(tried.get("exp_alerts")))
    assert {name for name, outcomes in fired.items() if set(outcomes) != {True, False}} == set(), "each must fire once, and once not"
    told = re.findall(r"^\| `(CriBridge\w+)` \|", (DOCS / "operations.md").read_text("utf-8"), re.MULTILINE)
    assert told == names
    assert all(
        rule["labels"]["severity"] in ("warning", "critical") and set(rule["annotations"]) == {"summary", "description"} for rule in rules()
    )


@with_promtool
def test_prometheus_takes_the_rules_and_each_alert_fires_when_it_should(tmp_path: Path) -> None:
    (tmp_path / "alerts.yml").write_text(CASES.read_text("utf-8").replace("RULES", str(RULES)))
    assert PROMTOOL is not None
    for what in (["check", "rules", str(RULES)], ["test", "rules", str(tmp_path / "alerts.yml")]):
        done = subprocess.run([PROMTOOL, *what], capture_output=True, text=True, timeout=60)
        assert done.returncode == 0, done.stdout + done.stderr
