"""Independent pieces of work side by side, one processor each.

Sharing every small tensor operation among threads costs in waiting what it saves: landmarks took 27 s with
one thread of torch and 27 s with two. Whole slices or whole fits share nothing, and each is computed by one
thread, so that its result does not depend on the number of processors.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

import torch

Piece = TypeVar("Piece")
Result = TypeVar("Result")


def each(
    work: Callable[[Piece], Result], pieces: Iterable[Piece], device: torch.device | str = "cpu"
) -> list[Result]:
    """`work` of every piece, in their order, on as many threads as torch may use here.

    One after the other on a GPU, which is busy with one piece, and inside a piece. `work` must not rely on
    torch.no_grad() around the call: that is a matter of each thread.
    """
    pieces = list(pieces)
    threads = torch.get_num_threads()
    if threads == 1 or len(pieces) < 2 or torch.device(device).type != "cpu":
        return [work(piece) for piece in pieces]
    workers = ThreadPoolExecutor(
        min(threads, len(pieces)), "piece", initializer=torch.set_num_threads, initargs=(1,)
    )
    try:
        with workers:
            return list(workers.map(work, pieces))
    finally:
        # torch keeps a number for this thread, and one for threads to come: the workers changed the latter
        torch.set_num_threads(threads)
