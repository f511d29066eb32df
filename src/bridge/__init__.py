"""cri-bridge: a Kubernetes CRI v1 server that runs each pod on the backend its RuntimeClass names.

This root package holds what every layer may use: errors, structured-concurrency pieces (aio) and logging.
"""

__version__ = "0.1.0"
