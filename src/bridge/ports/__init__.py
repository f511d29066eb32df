"""Protocols and frozen dataclasses between core and its adapters. No behaviour, no I/O; imports nothing of bridge but errors."""
