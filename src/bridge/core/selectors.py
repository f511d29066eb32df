"""Label selectors as the CRI filters use them: every given label must be there with that value."""

from __future__ import annotations

from collections.abc import Mapping


def labels_match(wanted: Mapping[str, str] | None, labels: Mapping[str, str]) -> bool:
    """Whether ``labels`` has all of ``wanted``; nothing wanted matches everything."""
    return not wanted or all(labels.get(key) == value for key, value in wanted.items())
