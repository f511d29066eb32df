"""SDK for runtimes with an OCI command line (runc, crun, youki …): implements bridge.ports.runtime. Never imports core or a plugin."""
