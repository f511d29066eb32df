"""A hint to the file system that costs nothing where it is not understood."""

import os
import subprocess
from pathlib import Path

import pytest

from bridge.host.inode_flags import spread


def test_each_directory_in_a_part_of_the_disk_of_its_own(tmp_path: Path) -> None:
    kind = subprocess.run(["stat", "-f", "-c", "%T", str(tmp_path)], check=True, capture_output=True, text=True).stdout.strip()
    done = spread(tmp_path)
    assert done or kind != "ext2/ext3" or os.geteuid() != 0
    assert spread(tmp_path) == done
    (tmp_path / "below").mkdir()


def test_a_file_system_without_such_flags() -> None:
    assert not spread(Path("/proc/self"))
    with pytest.raises(FileNotFoundError):
        spread(Path("/proc/self/absent"))
