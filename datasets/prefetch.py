"""Items made ahead of time by one background thread.

Usage: ``for batch in make_ahead(make_batch, range(start, stop), depth=4): ...``
"""

from __future__ import annotations

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TypeVar

Item = TypeVar("Item")
Made = TypeVar("Made")


def make_ahead(make: Callable[[Item], Made], items: Iterable[Item], depth: int) -> Iterator[Made]:
    """Yields ``make(item)`` in order, up to ``depth`` of them made ahead; 0 makes them here.

    An exception in ``make`` is raised where its item would have come. Closing the iterator ends the thread.
    """
    if depth < 1:
        yield from map(make, items)
        return
    pending: deque[Future[Made]] = deque()
    with ThreadPoolExecutor(max_workers=1, thread_name_prefix="prefetch") as pool:
        try:
            for item in items:
                pending.append(pool.submit(make, item))
                if len(pending) > depth:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
