"""Which AppArmor profile a container gets, and the text of the default one. Pure.

Sources: CRI v1 LinuxContainerSecurityContext and SecurityProfile, apparmor.d(5).
"""

from __future__ import annotations

from bridge.core.model import ProfileType, SecurityProfile

DEFAULT_PROFILE = "cri-bridge-default"
"""Name of the profile that is ours to load; any other name is the operator's."""

UNCONFINED = "unconfined"

_RULES = """\
  network,
  capability,
  file,
  umount,
  signal (send, receive) peer={name},
  ptrace (trace, tracedby, read, readby) peer={name},
{signals}

  # A container sees its own mounts only; a new one could uncover what the runtime has hidden.
  deny mount,

  # Of the files directly below /proc and of its trees that describe the machine, none may be written.
  deny @{{PROC}}/* wl,
  deny @{{PROC}}/{{acpi,asound,bus,driver,dynamic_debug,fs,irq,pressure,scsi,tty}}/** wklx,
  deny @{{PROC}}/{{kcore,keys,latency_stats,sched_debug,sysrq-trigger,timer_list}} rwklx,

  # Of the settings below /proc/sys, those are left that belong to a namespace: net, message queues, System V memory.
  deny @{{PROC}}/sys/{{abi,crypto,debug,dev,sunrpc,user,vm,xen}}/** wkl,
  deny @{{PROC}}/sys/fs/{{[^m]*,m[^q]*}} wkl,
  deny @{{PROC}}/sys/fs/{{[^m]*,m[^q]*}}/** wkl,
  deny @{{PROC}}/sys/kernel/{{[^ms]*,m[^s]*,s[^eh]*,se[^m]*}} wkl,
  deny @{{PROC}}/sys/kernel/{{[^ms]*,m[^s]*,s[^eh]*,se[^m]*}}/** wkl,

  # Below /sys only control groups may be written, and what firmware, power meters and security modules tell is not read.
  deny /sys/{{block,bus,class,dev,devices,hypervisor,kernel,module,power}}/** wklx,
  deny /sys/fs/{{[^c]*,c[^g]*}}/** wklx,
  deny /sys/{{firmware,devices/virtual/powercap,kernel/security}}/** rwklx,
"""


def wanted(request: SecurityProfile | None, default: str) -> str:
    """Name of the profile that a request means: its own, "unconfined", or ``default`` ("" when the operator wants none)."""
    kind = ProfileType.RUNTIME_DEFAULT if request is None else request.profile_type
    if kind is ProfileType.UNCONFINED:
        return UNCONFINED
    return default if request is None or kind is ProfileType.RUNTIME_DEFAULT else request.localhost_ref


def default_text(name: str, signallers: tuple[str, ...], *, abi: bool, tunables: bool, base: bool) -> str:
    """The default policy under ``name``: everything but what reaches the host through /proc, /sys and mount(2).

    ``signallers`` are the labels of those who may send signals into the container (the server, runtimes with a profile of
    their own). The rest tells which of the host's policy files there are to include.
    """
    head = ["abi <abi/3.0>,"] if abi else []
    head.append("include <tunables/global>" if tunables else "@{PROC}=/proc/")
    signals = "\n".join(f"  signal (receive) peer={label}," for label in sorted({UNCONFINED, "runc", "crun", *signallers}))
    body = ["  include <abstractions/base>"] if base else []
    body.append(_RULES.format(name=name, signals=signals))
    return "\n".join([*head, "", f"profile {name} flags=(attach_disconnected, mediate_deleted) {{", *body]) + "}\n"
