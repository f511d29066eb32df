"""The HTTP server behind the URLs of Exec, Attach and PortForward. It may know core, host, aio, log and errors; it knows no gRPC."""
