"""The command line. Knows the daemon, the client and the configuration; nothing imports it but ``__main__``."""
