"""The shared image store: references, registry client, unpacking, layers, snapshots. Knows `ports` and `host`, nothing of pods."""
