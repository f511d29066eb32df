"""What the handler says of itself."""

from __future__ import annotations

import json

from bridge._proto.runtime import v1 as pb
from bridge.ports.runtime import Ability, Support
from bridge.testing.conformance.catalogue import spec
from bridge.testing.conformance.stage import Stage

_IN_STATUS = {Ability.RECURSIVE_READ_ONLY: "recursive_read_only_mounts", Ability.USER_NAMESPACES: "user_namespaces"}


@spec("bridge.ports.runtime: RuntimeFeatures", quick=True)
async def abilities_are_probed(stage: Stage) -> None:
    """Every ability is declared with what its probe found"""
    missing = sorted(set(Ability) - set(stage.declared))
    assert not missing, f"nothing is declared of: {', '.join(missing)}"
    unproved = [each.ability for each in stage.declared.values() if not each.detail]
    assert not unproved, f"declared without evidence: {', '.join(unproved)}"
    odd = [each.ability for each in stage.declared.values() if each.support not in set(Support)]
    assert not odd, f"neither supported, emulated nor unsupported: {', '.join(odd)}"


@spec("CRI StatusResponse.runtime_handlers")
async def status_tells_the_same(stage: Stage) -> None:
    """The features that the kubelet reads in Status are those that were probed"""
    answer = await stage.cri.runtime.status(pb.StatusRequest(verbose=True))
    told = {each.name: each.features for each in answer.runtime_handlers}
    name = stage.node.target.name
    assert name in told, f"Status lists the handlers {sorted(told)}"
    features = told[name]
    for ability, field in _IN_STATUS.items():
        said = bool(features is not None and getattr(features, field))
        stage.note(f"{field}: {said}")
        assert said or not stage.has(ability), f"{field} is false in Status, and the probe says {stage.declared[ability]}"
    assert answer.status is not None
    wrong = [f"{each.type}: {each.message}" for each in answer.status.conditions if each.type == "RuntimeReady" and not each.status]
    assert not wrong, wrong
    json.loads(answer.info["handlers"])
