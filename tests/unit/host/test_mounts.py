"""The mountinfo parser and the overlay option string."""

from __future__ import annotations

from pathlib import Path

import pytest

from bridge.errors import LimitExceeded
from bridge.host.mounts import below, overlay_options, parse_mountinfo

SAMPLE = r"""22 28 0:21 / /proc rw,nosuid shared:12 - proc proc rw
30 28 0:26 / /run rw shared:5 master:1 - tmpfs tmpfs rw,size=100k
40 30 0:30 / /run/a rw - overlay overlay rw,lowerdir=a:b,upperdir=u
41 40 0:31 /x\040y /run/a/with\040space rw - ext4 /dev/vd\134a rw
42 40 0:31 / /run/a rw - tmpfs none rw
43 30 0:31 / /run/ab rw - tmpfs none rw
44 30 0:31 / /run/\303\244 rw - tmpfs none rw
garbage
45 x 0:1 / /y rw - t s
46 1 0:1 / /z rw
"""


def test_parses_every_well_formed_line() -> None:
    mounts = parse_mountinfo(SAMPLE)
    assert [m.id for m in mounts] == [22, 30, 40, 41, 42, 43, 44]
    assert mounts[1].propagation == ("shared:5", "master:1")
    assert mounts[2].super_options == ("rw", "lowerdir=a:b", "upperdir=u")
    assert (mounts[3].target, mounts[3].root, mounts[3].source) == ("/run/a/with space", "/x y", "/dev/vd\\a")
    assert mounts[6].target == "/run/ä"


def test_below_is_deepest_and_newest_first_and_knows_path_borders() -> None:
    assert [m.id for m in below(parse_mountinfo(SAMPLE), Path("/run/a"))] == [41, 42, 40]
    assert [m.id for m in below(parse_mountinfo(SAMPLE), Path("/run/none"))] == []


def test_names_are_relative_and_escaped() -> None:
    stand, options = overlay_options([Path("/s/l/2/fs"), Path("/s/l/1/f,s")], Path("/s/c/a:b/upper"), Path("/s/c/a:b/work"))
    assert stand == Path("/s")
    assert options == r"lowerdir=l/2/fs:l/1/f\,s,upperdir=c/a\:b/upper,workdir=c/a\:b/work"


def test_127_layers_fit_below_a_long_root_and_too_many_are_refused() -> None:
    root = Path("/var/lib") / ("x" * 200)
    layers = [root / "layers" / str(100000 + n) / "fs" for n in range(127)]
    upper = root / "snapshots" / ("c" * 64)
    assert len(overlay_options(layers, upper / "upper", upper / "work")[1]) < 4096
    with pytest.raises(LimitExceeded, match="500 layers"):
        overlay_options([root / "layers" / str(100000 + n) / "fs" for n in range(500)], upper / "upper", upper / "work")


def test_a_label_is_one_option_of_an_overlay_and_counts_towards_its_page() -> None:
    layers = [Path("/store/1/files"), Path("/store/2/files")]
    label = "system_u:object_r:container_file_t:s0:c1,c2"
    _, options = overlay_options(layers, None, None, label)
    assert options == f'lowerdir=1/files:2/files,context="{label}"'
    with pytest.raises(LimitExceeded):
        overlay_options(layers, None, None, "x" * 4096)
