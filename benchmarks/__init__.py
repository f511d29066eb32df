"""Side-by-side benchmarks against the peers installed on the machine: `python -m benchmarks --help`.

May use anything of ``bridge`` that a user may use (its wire types, its command line), nothing of its inside: the server
under test is a process of its own, as the peer is.
"""
