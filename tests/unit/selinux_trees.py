"""What hosts with SELinux have below /sys/fs/selinux and /etc/selinux, as trees in a directory."""

from __future__ import annotations

from pathlib import Path

CONTEXTS_FILE = """\
# as container-selinux writes it
process = "system_u:system_r:container_t:s0"
content = "system_u:object_r:virt_var_lib_t:s0"
file = "system_u:object_r:container_file_t:s0"
ro_file="system_u:object_r:container_ro_file_t:s0"
sandbox_kvm_process = "system_u:system_r:svirt_qemu_net_t:s0"
"""


def tree(root: Path, *, enforce: str | None = "1", policy: str = "targeted", contexts: str = CONTEXTS_FILE) -> Path:
    """A host's files below ``root``; ``enforce`` None for a kernel without SELinux."""
    if enforce is not None:
        (root / "sys/fs/selinux").mkdir(parents=True)
        (root / "sys/fs/selinux/enforce").write_text(enforce)
        (root / "sys/fs/selinux/context").write_text("")
    config = root / "etc/selinux/config"
    config.parent.mkdir(parents=True)
    config.write_text(f"# comment\nSELINUX=enforcing\nSELINUXTYPE={policy}\n")
    if contexts:
        path = root / "etc/selinux" / policy / "contexts/lxc_contexts"
        path.parent.mkdir(parents=True)
        path.write_text(contexts)
    return root
