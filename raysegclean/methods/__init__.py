"""One file per paper. A method names its voters, its policy and its rule, and nothing else.

No loops, no training, no I/O and no Ray may enter: those are the engine's.
"""
