"""Which class of block I/O and of RDT a container gets, and what becomes of one that this host lacks."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest

from bridge.core.spec import build_container
from bridge.errors import InvalidRequest, Unsupported
from tests.unit.core.spec_cases import FACTS, SETTINGS, config, facts, inputs, sandbox

CLASSES = dataclasses.replace(SETTINGS, blockio_classes={"slow": {"weight": 10}, "fast": {"weight": 900}})
IGNORING = dataclasses.replace(CLASSES, refuse_missing_classes=False)
RDT = facts(resctrl=True)
POD, ONE, OWN = (
    "blockio.resources.beta.kubernetes.io/pod",
    "blockio.resources.beta.kubernetes.io/container.app",
    "io.kubernetes.cri.blockio-class",
)


def linux(pod: dict[str, str], own: dict[str, str] | None = None, host: Any = FACTS, settings: Any = CLASSES) -> dict[str, Any]:
    base = sandbox()
    made = dataclasses.replace(base, config=dataclasses.replace(base.config, annotations=pod))
    spec = build_container(inputs(sandbox=made, config=config(annotations=own or {})), host, settings)
    return dict(spec["linux"])


@pytest.mark.parametrize(
    ("pod", "own", "weight"),
    [
        ({}, {}, None),
        ({POD: "slow"}, {}, 10),
        ({POD: "slow", ONE: "fast"}, {}, 900),
        ({POD: "slow", ONE: "fast"}, {OWN: "slow"}, 10),
        ({POD: "slow", ONE.replace("app", "other"): "fast"}, {}, 10),
        ({POD: "slow", ONE: ""}, {}, None),
    ],
)
def test_the_nearest_annotation_chooses(pod: dict[str, str], own: dict[str, str], weight: int | None) -> None:
    assert linux(pod, own)["resources"].get("blockIO") == (None if weight is None else {"weight": weight})


def test_a_class_that_is_not_defined_names_the_annotation() -> None:
    with pytest.raises(Unsupported, match=r"sandbox_config\.annotations\[blockio.*/pod\].*'x'.*fast, slow"):
        linux({POD: "x"})
    with pytest.raises(Unsupported, match=r"runtime\.blockio_config_file"):
        linux({POD: "x"}, settings=SETTINGS)
    assert "blockIO" not in linux({POD: "x"}, settings=IGNORING)["resources"]


def test_rdt_by_all_three_names() -> None:
    pod = {"rdt.resources.beta.kubernetes.io/pod": "gold"}
    assert linux(pod, host=RDT)["intelRdt"] == {"closID": "gold"}
    assert linux({**pod, "rdt.resources.beta.kubernetes.io/container.app": "silver"}, host=RDT)["intelRdt"] == {"closID": "silver"}
    assert linux(pod, {"io.kubernetes.cri.rdt-class": "bronze"}, host=RDT)["intelRdt"] == {"closID": "bronze"}
    assert "intelRdt" not in linux({}, host=RDT)


def test_rdt_that_the_host_lacks() -> None:
    pod = {"rdt.resources.beta.kubernetes.io/pod": "gold"}
    with pytest.raises(Unsupported, match=r"annotations\[rdt.*resctrl"):
        linux(pod)
    assert "intelRdt" not in linux(pod, settings=IGNORING)


@pytest.mark.parametrize("name", ["..", "a/b", "info", "mon_groups", "a\nb"])
def test_an_rdt_class_is_the_name_of_a_group_and_nothing_else(name: str) -> None:
    with pytest.raises(InvalidRequest) as caught:
        linux({"rdt.resources.beta.kubernetes.io/pod": name}, host=RDT)
    assert caught.value.field == "sandbox_config.annotations[rdt.resources.beta.kubernetes.io/pod]"
