"""Protobuf messages to bytes and back, for gRPC and ttrpc alike. Knows betterproto2's messages and nothing of the project."""
