"""The place of the cri-bridge plugin for gVisor (runsc). It registers no runtime yet: this version has no hooks."""
