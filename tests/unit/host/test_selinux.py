"""SELinux as found in recorded trees, and labels on files that can hold them."""

import errno
import os
from pathlib import Path

import pytest

from bridge.errors import HostError
from bridge.host import selinux
from bridge.host.selinux import Contexts, Mode
from tests.unit.selinux_trees import CONTEXTS_FILE, tree

FILE = "system_u:object_r:container_file_t:s0:c1,c2"


def test_modes(tmp_path: Path) -> None:
    assert selinux.mode(tmp_path) is Mode.DISABLED
    assert selinux.mode(tree(tmp_path / "on", enforce="1")) is Mode.ENFORCING
    assert selinux.mode(tree(tmp_path / "soft", enforce="0")) is Mode.PERMISSIVE


def test_contexts_come_from_the_configured_policy(tmp_path: Path) -> None:
    root = tree(tmp_path, policy="mls", contexts=CONTEXTS_FILE)
    assert selinux.contexts(root) == Contexts(
        "system_u:system_r:container_t:s0",
        "system_u:object_r:container_file_t:s0",
        "system_u:object_r:container_ro_file_t:s0",
        "mls",
        root,
    )


def test_the_file_that_container_selinux_ships_comes_first(tmp_path: Path) -> None:
    root = tree(tmp_path, contexts=CONTEXTS_FILE)
    shipped = root / "usr/share/containers/selinux/contexts"
    shipped.parent.mkdir(parents=True)
    shipped.write_text('process = "a:b:c:s0"\nfile = "d:e:f:s0"\n')
    found = selinux.contexts(root)
    assert found is not None
    assert (found.process, found.file, found.shared_file) == ("a:b:c:s0", "d:e:f:s0", "d:e:f:s0")


@pytest.mark.parametrize("broken", ["", "# nothing\n", 'process = "a:b:c:s0"\n', "file\n= x\n"])
def test_without_a_usable_file_the_kernel_is_asked_for_the_usual_types(tmp_path: Path, broken: str) -> None:
    found = selinux.contexts(tree(tmp_path, contexts=broken))
    assert found is not None
    assert found.process == "system_u:system_r:container_t:s0"


def test_older_types_where_the_policy_has_no_others(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "known", lambda context, root: "svirt" in context)
    found = selinux.contexts(tree(tmp_path, contexts=""))
    assert found is not None
    assert found.process == "system_u:system_r:svirt_lxc_net_t:s0"


def test_a_policy_without_containers_gives_no_contexts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selinux, "known", lambda context, root: False)
    assert selinux.contexts(tree(tmp_path, contexts="")) is None


def test_disabled_gives_no_contexts_although_a_policy_is_installed(tmp_path: Path) -> None:
    assert selinux.contexts(tree(tmp_path, enforce=None, contexts=CONTEXTS_FILE)) is None


def test_the_kernel_is_asked_about_a_context(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = tree(tmp_path)
    assert selinux.known("a:b:c:s0", root)
    assert (root / "sys/fs/selinux/context").read_text().startswith("a:b:c:s0")

    def refuse(descriptor: int, data: bytes) -> int:
        raise OSError(errno.EINVAL, "Invalid argument")

    monkeypatch.setattr(os, "write", refuse)
    assert not selinux.known("a:b:nonsense:s0", root)


def test_a_kernel_that_can_t_be_asked_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(HostError, match="can't ask SELinux"):
        selinux.known("a:b:c:s0", tmp_path)


@pytest.mark.root
def test_a_file_is_labelled_once_and_its_target_never(tmp_path: Path) -> None:
    target, link = tmp_path / "target", tmp_path / "link"
    target.write_text("x")
    link.symlink_to(target)
    assert selinux.label(str(link), FILE)
    assert not selinux.label(str(link), FILE)
    assert os.getxattr(link, selinux.ATTRIBUTE, follow_symlinks=False) == FILE.encode() + b"\0"
    assert selinux.ATTRIBUTE not in os.listxattr(target)
    selinux.label_all([target], FILE)
    assert os.getxattr(target, selinux.ATTRIBUTE) == FILE.encode() + b"\0"


def test_a_file_system_without_labels_is_left_alone() -> None:
    assert not selinux.label("/proc/self/status", FILE)


def test_what_can_t_be_labelled_is_named(tmp_path: Path) -> None:
    with pytest.raises(HostError, match=str(tmp_path / "absent")):
        selinux.label_all([tmp_path / "absent"], FILE)


def test_categories_stay_in_one_mount_option() -> None:
    assert selinux.with_context("size=1", FILE) == f'size=1,context="{FILE}"'
    assert selinux.with_context("size=1", "") == "size=1"
