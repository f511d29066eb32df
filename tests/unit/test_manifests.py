"""docs/manifests: what a cluster's administrator applies names handlers that exist, in the API's own words."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
import yaml

from bridge.config_files import load

TOP = Path(__file__).parents[2]
MANIFESTS = TOP / "docs" / "manifests"
QUANTITY = re.compile(r"\d+(Mi|Gi|m)?")
CLASSES = ["crun", "gvisor", "kata", "runc"]


def documents(path: Path) -> list[dict[str, Any]]:
    return [document for document in yaml.safe_load_all(path.read_text()) if document]


def handlers() -> dict[str, str]:
    """Handler → plugin, of a node with that file."""
    return {name: handler.plugin for name, handler in load([MANIFESTS / "handlers.toml"]).runtime.handlers.items()}


def test_there_is_a_class_for_each_runtime() -> None:
    assert sorted(path.stem for path in MANIFESTS.glob("*.yaml") if path.stem != "pods") == CLASSES


@pytest.mark.parametrize("name", CLASSES)
def test_a_runtime_class(name: str) -> None:
    (found,) = documents(MANIFESTS / f"{name}.yaml")
    assert (found["apiVersion"], found["kind"], found["metadata"], found["handler"]) == (
        "node.k8s.io/v1",
        "RuntimeClass",
        {"name": name},
        name,
    )
    assert set(found) <= {"apiVersion", "kind", "metadata", "handler", "overhead", "scheduling"}
    for resource, amount in found.get("overhead", {"podFixed": {}})["podFixed"].items():
        assert resource in {"cpu", "memory"}
        assert QUANTITY.fullmatch(amount)
    assert name in handlers(), "a pod of it would be refused"


def test_every_handler_has_a_plugin_in_this_repository() -> None:
    plugins = {path.parent.name for path in TOP.glob("plugins/*/pyproject.toml")}
    assert set(handlers().values()) <= plugins


def test_the_pods_name_each_class_once() -> None:
    pods = documents(MANIFESTS / "pods.yaml")
    assert sorted(pod["spec"]["runtimeClassName"] for pod in pods) == CLASSES
    assert all((pod["apiVersion"], pod["kind"]) == ("v1", "Pod") and pod["spec"]["containers"] for pod in pods)


def test_the_page_links_each_manifest() -> None:
    page = (TOP / "docs" / "kubelet.md").read_text()
    assert [path.name for path in MANIFESTS.iterdir() if f"(manifests/{path.name})" not in page] == []


def test_classes_on_the_page_are_configured_somewhere_on_it() -> None:
    page = (TOP / "docs" / "kubelet.md").read_text()
    blocks = re.findall(r"```yaml\n(.*?)```", page, re.DOTALL)
    found = [
        each for block in blocks for each in yaml.safe_load_all(block) if isinstance(each, dict) and each.get("kind") == "RuntimeClass"
    ]
    assert found != []
    known = set(handlers()) | set(re.findall(r"\[runtime\.handlers\.([\w-]+)\]", page))
    assert {each["handler"] for each in found} <= known
