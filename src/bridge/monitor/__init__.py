"""The monitor process: holds stdio, logs and exits of containers, outlives the server. May know ports and host, nothing of pods or CRI."""
