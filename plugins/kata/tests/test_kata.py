import bridge_kata

from bridge.plugins import Plugins


def test_it_registers_nothing_and_does_no_harm() -> None:
    plugins = Plugins()
    plugins.register(bridge_kata, name="kata")
    assert plugins.runtimes == ()
    assert plugins.faults == {}
