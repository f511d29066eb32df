"""The shipped test kit: image builders, fakes, failpoints, leak audit, conformance suite. May know every port; nothing imports it at run time."""
