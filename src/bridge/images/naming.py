"""Which image of the store a text means: a name in any of its short or full forms, a digest, an id or its beginning. Pure."""

from __future__ import annotations

from bridge.errors import InvalidRequest
from bridge.images import reference
from bridge.images.catalogue import Catalogue
from bridge.images.rows import Record
from bridge.images.short_names import ShortNames


def meant(text: str, short_names: ShortNames, catalogue: Catalogue) -> tuple[Record, str | None] | None:
    """The image that ``text`` means, and the name it was called by (None: by id). Raises InvalidRequest."""
    images = catalogue.images
    prefix = reference.id_prefix(text)
    if prefix is not None and reference.is_id(text):
        record = images.get(f"sha256:{prefix}")
        return None if record is None else (record, None)
    for meaning in short_names.meanings(text):
        if (named := _named(meaning, prefix, catalogue)) is not None:
            return named
    if prefix is None:
        return None
    matches = [record for image, record in images.items() if image.startswith(f"sha256:{prefix}")]
    if len(matches) > 1:
        raise InvalidRequest(f"{text!r} is the beginning of {len(matches)} image ids", field="image")
    return (matches[0], None) if matches else None


def _named(text: str, prefix: str | None, catalogue: Catalogue) -> tuple[Record, str] | None:
    try:
        wanted = reference.parse(text).canonical()
    except InvalidRequest:
        if prefix is not None:  # "sha256:" and a few digits is an id, no name
            return None
        raise
    image = catalogue.names.get(str(wanted))
    if image is not None:
        return catalogue.images[image], str(wanted)
    pair = (wanted.repository, wanted.digest)
    return next(((record, str(wanted)) for record in catalogue.images.values() if pair in record.digests), None)


def going(record: Record, name: str) -> frozenset[str]:
    """The names of ``record`` that removing ``name`` takes away: itself, or for a digest all of that repository."""
    if name in record.names:
        return frozenset((name,))
    repository = name.partition("@")[0]
    return frozenset(own for own in record.names if reference.parse(own).repository == repository)
