"""The tables of the image index, ``index.db``. See docs/adr/0003-image-store.md for what each one means.

A script once released is never changed: a new one is appended.
"""

from __future__ import annotations

_V1 = """
CREATE TABLE blobs (
    digest     TEXT PRIMARY KEY,
    media_type TEXT NOT NULL,
    data       BLOB NOT NULL
) WITHOUT ROWID;

CREATE TABLE layers (
    id          INTEGER PRIMARY KEY AUTOINCREMENT,
    chain_id    TEXT NOT NULL UNIQUE,
    parent      INTEGER REFERENCES layers (id),
    diff_id     TEXT NOT NULL,
    disk_bytes  INTEGER NOT NULL,
    inodes      INTEGER NOT NULL,
    tar_bytes   INTEGER NOT NULL,
    exact       INTEGER NOT NULL,
    created_ns  INTEGER NOT NULL,
    verified_ns INTEGER NOT NULL
);
CREATE INDEX layers_parent ON layers (parent);

CREATE TABLE images (
    id         TEXT PRIMARY KEY REFERENCES blobs (digest),
    manifest   TEXT NOT NULL REFERENCES blobs (digest),
    top        INTEGER REFERENCES layers (id),
    created_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX images_top ON images (top);

CREATE TABLE names (
    name      TEXT PRIMARY KEY,
    image     TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    pulled_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX names_image ON names (image);

CREATE TABLE digests (
    repository TEXT NOT NULL,
    digest     TEXT NOT NULL REFERENCES blobs (digest),
    image      TEXT NOT NULL REFERENCES images (id) ON DELETE CASCADE,
    PRIMARY KEY (repository, digest)
) WITHOUT ROWID;
CREATE INDEX digests_image ON digests (image);

CREATE TABLE snapshots (
    container  TEXT PRIMARY KEY,
    image      TEXT NOT NULL REFERENCES images (id),
    top        INTEGER REFERENCES layers (id),
    created_ns INTEGER NOT NULL
) WITHOUT ROWID;
CREATE INDEX snapshots_image ON snapshots (image);
"""

# What a container uses besides the image it stands on: the images of its volumes.
_V2 = """
CREATE TABLE holds (
    container TEXT NOT NULL,
    image     TEXT NOT NULL REFERENCES images (id),
    PRIMARY KEY (container, image)
) WITHOUT ROWID;
CREATE INDEX holds_image ON holds (image);
"""

# What a check needs: the digest of the layer's listing, and what is wrong with the layer, if anything is known to be.
_V3 = """
ALTER TABLE layers ADD COLUMN listing TEXT NOT NULL DEFAULT '';
ALTER TABLE layers ADD COLUMN fault TEXT NOT NULL DEFAULT '';
"""

# An artifact's id is its manifest's digest, for artifacts share their configs. Then ``config`` is the digest of that; an image has none.
_V4 = """
ALTER TABLE images ADD COLUMN artifact_type TEXT NOT NULL DEFAULT '';
ALTER TABLE images ADD COLUMN config TEXT REFERENCES blobs (digest);
"""

MIGRATIONS = (_V1, _V2, _V3, _V4)

DROP_UNUSED_BLOBS = """
DELETE FROM blobs WHERE digest NOT IN (
    SELECT id FROM images UNION SELECT manifest FROM images UNION SELECT digest FROM digests
    UNION SELECT config FROM images WHERE config IS NOT NULL
)
"""
