"""A frozen language model reads; a Tiny Recursive Model listens to it and answers with a grid.

Nothing outside this package and ``hybrid_train.py`` imports it: deleting both leaves the rest as it is.
"""
