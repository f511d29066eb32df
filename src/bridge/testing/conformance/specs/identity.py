"""Who a container's process is, and what it may do."""

from __future__ import annotations

import json

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import Stage

_CAPS = "grep -E '^Cap(Eff|Bnd):' /proc/self/status | cut -f 2"
_CHOWN, _SYS_TIME = 1 << 0, 1 << 25


@spec("CRI LinuxContainerSecurityContext.run_as_user, run_as_group, supplemental_groups, run_as_username", quick=True)
async def users(stage: Stage) -> None:
    """Processes have the user and groups that the request gives, by number or by name"""
    pod = await stage.pod()
    security = {"run_as_user": pb.Int64Value(value=1234), "run_as_group": pb.Int64Value(value=2345), "supplemental_groups": [3456, 4567]}
    container = await stage.started(pod, name="numbers", security=security)
    assert await stage.output(container, "id -u; id -g; id -G") == "1234\n2345\n2345 3456 4567"
    assert (await stage.exec(container, "touch /etc/x")).exit_code != 0
    named = await stage.started(pod, name="named", security={"run_as_username": "daemon"})
    assert await stage.output(named, "id -u; id -g; whoami") == "1\n1\ndaemon"


@spec("CRI Capability.add_capabilities, drop_capabilities")
async def capabilities(stage: Stage) -> None:
    """Capabilities are the default ones, with those added that the request adds and without those that it drops"""
    pod = await stage.pod()
    plain = await stage.started(pod, name="plain")
    default = int((await stage.output(plain, _CAPS)).split()[0], 16)
    assert default & _CHOWN
    change = pb.Capability(add_capabilities=["SYS_TIME"], drop_capabilities=["CHOWN"])
    changed = await stage.started(pod, name="changed", security={"capabilities": change})
    assert int((await stage.output(changed, _CAPS)).split()[0], 16) == (default | _SYS_TIME) & ~_CHOWN
    none = await stage.started(pod, name="none", security={"capabilities": pb.Capability(drop_capabilities=["ALL"])})
    assert int((await stage.output(none, _CAPS)).split()[0], 16) == 0
    assert (await stage.exec(none, "chown 1:1 /tmp")).exit_code != 0


@spec("CRI LinuxContainerSecurityContext.no_new_privs")
async def no_new_privileges(stage: Stage) -> None:
    """With no_new_privs no program gives its user more than it has"""
    pod = await stage.pod()
    container = await stage.started(pod, security={"no_new_privs": True})
    assert await stage.output(container, "grep NoNewPrivs /proc/self/status | cut -f 2") == "1"


@spec("CRI SecurityProfile Localhost, RuntimeDefault, Unconfined", needs=[Ability.SECCOMP])
async def seccomp(stage: Stage) -> None:
    """A seccomp profile of the node is in force; without one all goes that the default lets go"""
    if not stage.node.private:
        stage.not_here("the server is not the suite's own, so it can't be given a profile")
    profile = stage.node.seccomp_root / "no-mkdir.json"
    rule = {"names": ["mkdir", "mkdirat"], "action": "SCMP_ACT_ERRNO", "errnoRet": 1}
    profile.write_text(json.dumps({"defaultAction": "SCMP_ACT_ALLOW", "syscalls": [rule]}))
    pod = await stage.pod()
    local = pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.Localhost, localhost_ref=str(profile))
    bound = await stage.started(pod, name="bound", security={"seccomp": local})
    answer = await stage.exec(bound, "mkdir /tmp/dir")
    assert answer.exit_code != 0, "mkdir is forbidden by the profile and went through"
    assert b"not permitted" in answer.stderr, answer.stderr
    default = pb.SecurityProfile(profile_type=pb.SecurityProfileProfileType.RuntimeDefault)
    free = await stage.started(pod, name="free", security={"seccomp": default})
    assert await stage.output(free, "mkdir /tmp/dir && echo made; grep ^Seccomp: /proc/self/status | cut -f 2") == "made\n2"
