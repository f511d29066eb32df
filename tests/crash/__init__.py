"""The crash sweep: every failpoint of every operation, with every fault, on every handler; see __main__."""
