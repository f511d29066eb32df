"""Published holes that a request alone would open: refused by core before anything is made, over fakes of the runtime."""

from __future__ import annotations

import pytest

from bridge.core.services import Services
from bridge.errors import BridgeError, InvalidRequest
from tests.component.conftest import World, pod

pytestmark = pytest.mark.root


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("kernel.shm_rmid_forced", "1\nkernel.core_pattern=|/bin/sh"),
        ("kernel.shm_rmid_forced", "1\0+kernel.core_pattern=|/bin/sh"),
        ("kernel.shm_rmid_forced+kernel.core_pattern", "|/bin/sh"),
        ("kernel.shm_rmid_forced=1+kernel.core_pattern", "|/bin/sh"),
        ("kernel.core_pattern", "|/bin/sh"),
        ("net.ipv4/../../kernel/core_pattern", "|/bin/sh"),
        ("net/../kernel/core_pattern", "|/bin/sh"),
        ("/proc/sys/kernel/core_pattern", "|/bin/sh"),
        ("kernel.shm_rmid_forced ", "1"),
    ],
)
async def test_cve_2022_0811_nothing_rides_on_a_sysctl(world: World, core: Services, key: str, value: str) -> None:
    """CRI-O joined sysctls with "+" for its helper, and a value with one in it set another sysctl, of the host."""
    with pytest.raises(InvalidRequest, match=r"^config\.linux\.sysctls"):
        await core.sandboxes.run(pod(sysctls={key: value}), "")
    assert world.leftovers() == []


async def test_cve_2022_0811_a_plus_in_a_value_is_only_a_plus(core: Services) -> None:
    with pytest.raises(BridgeError, match=r"kernel\.shm_rmid_forced"):  # the kernel takes no such number, and nothing else is set
        await core.sandboxes.run(pod(sysctls={"kernel.shm_rmid_forced": "1+kernel.core_pattern=|/bin/sh"}), "")
