"""SDK for runtimes behind the containerd shim v2 API: implements bridge.ports.runtime over ttrpc. Never imports core or a plugin."""
