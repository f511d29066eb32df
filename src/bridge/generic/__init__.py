"""Runtimes that need configuration instead of a plugin of their own: whatever has an OCI command line, or a containerd shim.

cri-bridge announces them by its own entry points, so they are plugins like any other: they may know the plugin interface, the kits
and the ports, and neither core nor the server's configuration.
"""
