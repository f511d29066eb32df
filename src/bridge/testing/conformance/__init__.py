"""The conformance suite for runtime handlers: a pytest plugin (``bridge.testing.conformance.plugin``). Knows the server by the CRI only."""
