"""The shipped test kit: image builders, fakes, failpoints, leak audit, conformance. Nothing imports it at run time."""
