"""The gRPC edge: CRI's protobuf messages to the core and back. May know gRPC, protobuf and the core; decides nothing about pods."""
