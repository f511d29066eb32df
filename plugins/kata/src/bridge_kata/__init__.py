"""The place of the cri-bridge plugin for Kata Containers. It registers no runtime yet: this version has no hooks."""
