"""A stand-in for Kata's shim: its behaviour as seen from outside, with a PID namespace for a virtual machine. Only tests use it."""
