"""CNI: the pod network by executing plugins. Implements ports.network; knows nothing of core, gRPC or the configuration file."""
