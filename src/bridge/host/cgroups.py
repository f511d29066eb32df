"""Make, inspect and remove cgroups, on v2 and on v1 (hybrid too). Killing who is in one: cgroup_kill.

A *cgroup* is named here by its path from the root of the hierarchies ("/kubepods/pod7"); a *directory* is one such
cgroup in one hierarchy. Resource limits are the runtime's work, not ours. Everything blocks (some operations wait for
the kernel): call from a worker thread, except the three reads of_pid, oom_kills and pids, which take microseconds.
Standard library only: the monitor imports it.
"""

from __future__ import annotations

import contextlib
import errno
import functools
import os
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

from bridge.errors import HostError, TimedOut
from bridge.host.cgroup_paths import UNIFIED, CgroupLayout, parse_counter, parse_mountinfo, parse_proc_cgroup

_POLL_SECONDS = 0.002


@functools.cache
def layout() -> CgroupLayout:
    """This host's hierarchies, read once (mountinfo grows with every container); ``layout.cache_clear()`` reads anew."""
    return parse_mountinfo(Path("/proc/self/mountinfo").read_text())


def is_v2() -> bool:
    """Whether cgroup v2 holds the controllers on this host."""
    return layout().is_v2


def of_pid(pid: int, *, on: CgroupLayout | None = None, proc: Path = Path("/proc")) -> Mapping[str, Path]:
    """Controller → directory of the cgroup that process ``pid`` is in; "" is v2.

    Raises HostError with errno ESRCH when there is no such process.
    """
    hierarchies = on or layout()
    try:
        text = (proc / str(pid) / "cgroup").read_text()
    except (FileNotFoundError, ProcessLookupError) as exc:
        raise HostError(f"process {pid} is gone", errno=errno.ESRCH) from exc
    paths = parse_proc_cgroup(text)
    return {name: hierarchies.mounts[name].directory(path) for name, path in paths.items() if name in hierarchies.mounts}


def controller_directory(directories: Mapping[str, Path], controller: str) -> Path | None:
    """The directory in which ``controller`` acts, of what of_pid returned: v1's own, else v2's."""
    return directories.get(controller) or directories.get(UNIFIED)


def oom_kills(memory_dir: Path) -> int:
    """How many processes the kernel's OOM killer ended in this cgroup; 0 when the cgroup is gone.

    v2 counts descendants too; v1 counts the cgroup itself.
    """
    for name in ("memory.events", "memory.oom_control"):
        text = read(memory_dir / name)
        if text:
            return parse_counter(text, "oom_kill")
    return 0


def pids(directory: Path) -> list[int]:
    """Processes in a cgroup and its descendants; empty when it is gone. Threaded cgroups of v2 are counted at their domain."""
    found: list[int] = []
    for each in _tree(directory):
        try:
            found += map(int, (each / "cgroup.procs").read_text().split())
        except OSError as exc:
            if exc.errno not in (errno.ENOENT, errno.ENODEV, errno.EOPNOTSUPP):
                raise HostError(f"can't read the processes of {each}: {exc.strerror}", errno=exc.errno) from exc
    return found


def _tree(directory: Path) -> Iterator[Path]:
    """``directory`` and its descendants, deepest first."""
    for child in children(directory):
        yield from _tree(child)
    yield directory


def children(directory: Path) -> list[Path]:
    """The cgroups right below one; none when it is gone."""
    try:
        with os.scandir(directory) as entries:
            return [Path(entry.path) for entry in entries if entry.is_dir(follow_symlinks=False)]
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV):
            return []
        raise HostError(f"can't list {directory}: {exc.strerror}", errno=exc.errno) from exc


def create(cgroup: str, *, on: CgroupLayout | None = None) -> tuple[Path, ...]:
    """Make ``cgroup``, with its parents, in every hierarchy; an existing one stays as it is. Returns its directories.

    Not for the systemd driver, where systemd makes slices. Raises HostError; what was made until then is left to ``remove``.
    """
    hierarchies = on or layout()
    for controller, mount in hierarchies.mounts.items():
        directory = mount.directory(cgroup)
        if directory.exists():
            continue
        for parent in [*reversed(directory.relative_to(mount.point).parents), directory.relative_to(mount.point)]:
            hand_down = hierarchies.is_v2 and mount.point / parent != directory
            _create_one(mount.point / parent, controller, hand_down=hand_down)
    return hierarchies.directories(cgroup)


def _create_one(directory: Path, controller: str, *, hand_down: bool) -> None:
    try:
        directory.mkdir(exist_ok=True)
        if controller == "cpuset":
            _inherit_cpuset(directory)
        elif hand_down:  # never on a hybrid host: it would bind the controller to v2 and take it from v1
            _enable_controllers(directory)
    except OSError as exc:
        raise HostError(f"can't make cgroup {directory}: {exc.strerror}", errno=exc.errno) from exc


def _inherit_cpuset(directory: Path) -> None:
    """A new v1 cpuset is empty, and nothing can run in it until its CPUs and memory nodes are set."""
    for name in ("cpuset.cpus", "cpuset.mems"):
        target, source = directory / name, directory.parent / name
        if target.exists() and source.exists() and not target.read_text().strip():
            target.write_text(source.read_text())


def _enable_controllers(directory: Path) -> None:
    """Hand every controller down to the children, one by one: one that is busy or for threads only must not stop the others."""
    for name in (directory / "cgroup.controllers").read_text().split():
        try:
            (directory / "cgroup.subtree_control").write_text(f"+{name}")
        except OSError as exc:
            # The runtime says which controller it misses when a limit needs it; the pod may need none.
            if exc.errno not in (errno.EBUSY, errno.ENOENT, errno.EOPNOTSUPP, errno.EINVAL):
                raise


def create_child(cgroup: str, name: str, *, controller: str | None = None, on: CgroupLayout | None = None) -> tuple[Path, ...]:
    """Make ``name`` below the existing ``cgroup``, in the hierarchy of ``controller`` or in all (None). Returns its directories.

    Raises HostError, with errno ENOENT when ``cgroup`` is gone; then nothing was made.
    """
    hierarchies = on or layout()
    chosen = hierarchies.mounts if controller is None else {controller: hierarchies.mounts[controller]}
    made: dict[Path, None] = {}
    try:
        for each, mount in chosen.items():
            directory = mount.directory(cgroup) / name
            if directory not in made:
                _create_one(directory, each, hand_down=False)
                made[directory] = None
    except HostError:
        for directory in made:
            remove_directory(directory)
        raise
    return tuple(made)


def join(cgroup: str, *, on: CgroupLayout | None = None) -> None:
    """Move the calling process into ``cgroup`` in every hierarchy, making it first.

    For server and monitor, so that no pod's limit or kill reaches them and they are in nobody's accounts. Raises HostError.
    """
    for directory in create(cgroup, on=on):
        try:
            (directory / "cgroup.procs").write_text("0")
        except OSError as exc:
            raise HostError(f"can't join cgroup {directory}: {exc.strerror}", errno=exc.errno) from exc


def hasten_attach() -> None:
    """Make the kernel ready for a move between cgroups that is about to happen. Changes nothing. Blocks, up to some 20 ms.

    The first move after a while waits for an RCU grace period (6–16 ms measured on Linux 6.18; none with the mount option
    favordynmods), those within about 15 ms of it do not. A runtime moves its container's first process some milliseconds after its own
    start, so asking when it is started lets both waits overlap: this moves the calling process to where it is.
    """
    mine = _own_directory()
    if mine is not None:
        with contextlib.suppress(HostError):  # a hint: where it can't be given, the runtime's move only takes its time
            write(mine / "cgroup.procs", "0")


@functools.cache
def _own_directory() -> Path | None:
    found = of_pid(os.getpid())
    return controller_directory(found, "freezer")


def move(pid: int, directory: Path) -> bool:
    """Move process ``pid`` into an existing cgroup directory; False when the process is gone. Raises HostError."""
    try:
        (directory / "cgroup.procs").write_text(str(pid))
    except OSError as exc:
        if exc.errno == errno.ESRCH:
            return False
        raise HostError(f"can't move process {pid} to {directory}: {exc.strerror}", errno=exc.errno) from exc
    return True


def remove(cgroup: str, *, timeout: float = 2.0, on: CgroupLayout | None = None) -> None:
    """Remove ``cgroup`` and its descendants in every hierarchy; absent means success.

    Waits up to ``timeout`` seconds for killed processes to be gone. Raises TimedOut naming the processes that are left.
    """
    deadline = time.monotonic() + timeout
    hierarchies = on or layout()
    for directory in hierarchies.directories(cgroup):
        if directory in {mount.point for mount in hierarchies.mounts.values()}:
            raise HostError(f"{directory} is a hierarchy's root and can't be removed")
        remove_directory(directory, timeout=max(0.0, deadline - time.monotonic()))


def remove_directory(directory: Path, *, timeout: float = 2.0) -> None:
    """``remove`` for one directory."""
    deadline = time.monotonic() + timeout
    while True:
        try:
            for each in _tree(directory):
                with contextlib.suppress(FileNotFoundError):
                    each.rmdir()
        except OSError as exc:
            if exc.errno not in (errno.EBUSY, errno.ENOTEMPTY):
                raise HostError(f"can't remove cgroup {directory}: {exc.strerror}", errno=exc.errno) from exc
            if time.monotonic() >= deadline:
                raise TimedOut(f"cgroup {directory} is still in use by processes {pids(directory)}") from exc
            time.sleep(_POLL_SECONDS)
        else:
            return


def read(file: Path) -> str:
    """A control file's text; "" when there is none, or its cgroup goes between open and read (ENODEV)."""
    try:
        return file.read_text()
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV, errno.ENOTDIR):
            return ""
        raise


def write(file: Path, value: str) -> bool:
    """Write to a control file; False when it does not exist: another cgroup version or kernel, or the cgroup is gone."""
    try:
        descriptor = os.open(file, os.O_WRONLY | os.O_CLOEXEC)
        try:
            os.write(descriptor, value.encode())
        finally:
            os.close(descriptor)
    except OSError as exc:
        if exc.errno in (errno.ENOENT, errno.ENODEV):
            return False
        raise HostError(f"can't write {value!r} to {file}: {exc.strerror}", errno=exc.errno) from exc
    return True
