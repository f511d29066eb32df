"""Traces for OpenTelemetry: only imported when the configuration asks for them."""
