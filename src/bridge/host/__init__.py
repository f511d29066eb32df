"""Operating-system primitives: processes, mounts, namespaces, cgroups, system calls, the database. Knows nothing of pods."""
