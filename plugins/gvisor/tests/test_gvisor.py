import bridge_gvisor

from bridge.plugins import Plugins


def test_it_registers_nothing_and_does_no_harm() -> None:
    plugins = Plugins()
    plugins.register(bridge_gvisor, name="gvisor")
    assert plugins.runtimes == ()
    assert plugins.faults == {}
