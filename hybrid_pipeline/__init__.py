"""A frozen language model reads; a Tiny Recursive Model listens to it and answers with a grid.

Nothing outside this package, ``hybrid_train.py`` and ``hybrid_describe.py`` imports it: deleting the three leaves the
rest as it is.
"""

import training.waiting  # noqa: F401
