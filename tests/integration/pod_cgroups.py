"""Cgroups of pods with the cgroup driver that ``auto`` means on this host (see bridge.testing.pod_cgroups)."""

from __future__ import annotations

from bridge.config import Config
from bridge.daemon_settings import cgroup_driver
from bridge.host.facts import gather
from bridge.testing.pod_cgroups import PodCgroups

DRIVER = cgroup_driver(Config(), gather())
_OURS = PodCgroups(DRIVER)
top, of_pod, of_container = _OURS.top, _OURS.of_pod, _OURS.of_container
create, remove, end_slice = _OURS.create, _OURS.remove, _OURS.end_slice
