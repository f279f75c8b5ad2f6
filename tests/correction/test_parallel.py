"""Pieces side by side: in their order, one thread of torch each, the same on any number of processors."""

import threading
from collections.abc import Iterator

import pytest
import torch

from correction import parallel


@pytest.fixture(autouse=True)
def threads_as_before() -> Iterator[None]:
    before = torch.get_num_threads()
    yield
    torch.set_num_threads(before)


def test_two_pieces_run_at_the_same_time_with_one_thread_each() -> None:
    torch.set_num_threads(2)
    meeting = threading.Barrier(2, timeout=10)

    def work(piece: int) -> tuple[int, int]:
        meeting.wait()  # nobody passes alone
        return piece, torch.get_num_threads()

    assert parallel.each(work, range(4)) == [(piece, 1) for piece in range(4)]


def test_afterwards_torch_has_its_threads_again_here_and_in_new_threads() -> None:
    torch.set_num_threads(2)
    parallel.each(torch.sin, [torch.zeros(2), torch.ones(2)])
    told: list[int] = []
    other = threading.Thread(target=lambda: told.append(torch.get_num_threads()))
    other.start()
    other.join()
    assert (torch.get_num_threads(), told) == (2, [2])


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_one_thread_or_a_gpu_works_through_the_pieces_here(device: str) -> None:
    torch.set_num_threads(1 if device == "cpu" else 2)
    here = threading.get_ident()
    assert parallel.each(lambda _: threading.get_ident(), range(3), device) == [here] * 3


def test_a_piece_that_fails_is_told() -> None:
    torch.set_num_threads(2)
    with pytest.raises(ZeroDivisionError):
        parallel.each(lambda piece: 1 / piece, [1, 0, 2])
    assert torch.get_num_threads() == 2
