"""The domain: sandboxes, containers, execs, their lifecycle and OCI specs. Knows no gRPC, HTTP, pluggy, pydantic or runtime."""
