"""The tree and the packages that docs/architecture.md describes are those on disk, and links between pages lead somewhere."""

from __future__ import annotations

import re
from pathlib import Path

TOP = Path(__file__).parents[2]
DOCS = TOP / "docs"


def packages_on_disk() -> set[str]:
    """Packages, and modules directly below src/bridge, by their path below it."""
    top = TOP / "src" / "bridge"
    modules = {path.name for path in top.glob("*.py") if path.name != "__init__.py"}
    return modules | {f"{path.parent.name}/" for path in top.glob("*/__init__.py")}


def test_architecture_names_every_package_and_no_other() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    tree = text.split("```tree\n")[1].split("```")[0]
    named = {line.split()[0] for line in tree.splitlines() if line.startswith("  ") and not line.startswith("   ")}
    assert named == packages_on_disk()


def test_every_package_has_a_paragraph() -> None:
    text = (DOCS / "architecture.md").read_text("utf-8")
    paragraphs = set(re.findall(r"^\*\*`([\w./]+)`\*\*", text, re.MULTILINE))
    assert {name for name in packages_on_disk() if name.endswith("/")} - paragraphs == set()


def test_modules_that_pages_name_exist() -> None:
    missing = []
    for page in [*DOCS.glob("**/*.md"), TOP / "README.md"]:
        names = re.findall(r"`((?:src|plugins|tests|scripts|docs|proto|benchmarks)/[\w./-]+)`", page.read_text("utf-8"))
        missing += [f"{page.name}: {name}" for name in names if not (TOP / name).exists()]
    assert missing == []


def test_relative_links_lead_somewhere() -> None:
    broken = []
    for page in [*DOCS.glob("**/*.md"), TOP / "README.md", TOP / "CHANGELOG.md"]:
        targets = re.findall(r"\]\((?!https?:|#)([^)#\s]+)", page.read_text("utf-8"))
        broken += [f"{page.name}: {target}" for target in targets if not (page.parent / target).exists()]
    assert broken == []


def test_adrs_are_numbered_once_and_listed() -> None:
    directory = DOCS / "adr"
    numbers = [path.name.split("-")[0] for path in directory.glob("[0-9]*.md")]
    assert len(numbers) == len(set(numbers))
    index = (directory / "README.md").read_text("utf-8")
    assert [path.name for path in directory.glob("[0-9]*.md") if path.name not in index] == []
