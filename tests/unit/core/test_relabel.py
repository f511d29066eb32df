"""Which paths of the host keep the labels that they have, whatever a request asks for."""

import pytest

from bridge.core.relabel import is_the_hosts


@pytest.mark.parametrize(
    "path",
    [
        *("/", "//", "/.", "/etc", "/etc/", "/usr", "/usr/share/x", "/home", "/home/u1", "/root", "/var", "/var/lib", "/var/log"),
        *("/proc", "/proc/1", "/sys/fs", "/dev/shm", "/boot/efi", "/lib/modules", "/tmp", "/x/../etc", "/var/./lib/", "/run", "/etc/pki"),
    ],
)
def test_the_hosts_own(path: str) -> None:
    assert is_the_hosts(path)


@pytest.mark.parametrize(
    "path",
    ["/var/lib/kubelet/pods/x/volumes/y", "/var/lib/x", "/srv/data", "/home/u1/data", "/etcetera", "/usrlocal", "/mnt/disk", "/opt/x"],
)
def test_what_may_be_labelled(path: str) -> None:
    assert not is_the_hosts(path)
