"""The server's own metrics for Prometheus: only imported when the configuration asks for them."""
