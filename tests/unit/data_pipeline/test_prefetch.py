"""Batches come in order and in time, whichever of their chunks is done first."""

from __future__ import annotations

import threading
import weakref
from collections.abc import Callable, Iterator
from contextlib import closing
from dataclasses import dataclass, field

import pytest

from data_pipeline import prefetch
from data_pipeline.prefetch import chunks_of, made_ahead


@dataclass
class Numbered:
    """A batch of rows, each of which does what it is given."""

    number: int
    work: list[Callable[[], object]] = field(default_factory=list)
    done: int = 0

    def __len__(self) -> int:
        return len(self.work)

    def fill(self, begin: int, end: int) -> None:
        for one in self.work[begin:end]:
            one()
            self.done += 1

    def finish(self) -> int:
        assert self.done == len(self.work), "a chunk is still under way"
        return self.number


@pytest.mark.parametrize(
    ("rows", "threads", "sizes"),
    [(100, 2, [32, 32, 32, 4]), (10, 4, [3, 3, 3, 1]), (3, 8, [1, 1, 1]), (32, 1, [32]), (0, 2, [])],
)
def test_a_batch_is_cut_so_that_all_threads_have_a_part_of_it(
    rows: int, threads: int, sizes: list[int]
) -> None:
    chunks = chunks_of(rows, threads=threads)
    assert [end - begin for begin, end in chunks] == sizes
    assert [row for chunk in chunks for row in range(*chunk)] == list(range(rows))


@pytest.mark.parametrize("ahead", [0, 1, 3])
def test_so_many_batches_are_begun_before_the_one_that_is_taken(ahead: int) -> None:
    begun: list[int] = []

    def plans() -> Iterator[Numbered]:
        for number in range(6):
            begun.append(number)
            yield Numbered(number)

    with closing(made_ahead(plans(), threads=1, ahead=ahead)) as batches:
        for taken in range(6):
            assert next(batches) == taken
            assert begun == list(range(min(taken + 1 + ahead, 6)))
        assert next(batches, None) is None


def test_a_batch_whose_chunks_were_slow_still_comes_before_the_next() -> None:
    later_done = threading.Event()
    slow = Numbered(0, [lambda: later_done.wait(60)])
    quick = Numbered(1, [later_done.set])
    with closing(made_ahead(iter([slow, quick]), threads=2, ahead=1)) as batches:
        assert list(batches) == [0, 1]


def test_a_batch_that_was_taken_is_kept_by_no_thread_that_waits_for_work() -> None:
    both, later, freed = threading.Barrier(2, timeout=60), threading.Event(), threading.Event()

    def plans() -> Iterator[Numbered]:
        taken = Numbered(0, [both.wait, both.wait])  # a row for each thread
        weakref.finalize(taken, freed.set)
        yield taken
        del taken
        yield Numbered(1, [lambda: later.wait(60)])

    with closing(made_ahead(plans(), threads=2, ahead=1)) as batches:
        assert next(batches) == 0
        assert freed.wait(20)
        later.set()


def test_an_error_in_a_chunk_is_raised_in_its_batchs_turn_and_ends_the_threads() -> None:
    def fail() -> None:
        raise ZeroDivisionError

    before = threading.active_count()
    batches = made_ahead(iter([Numbered(0), Numbered(1, [fail]), Numbered(2)]), threads=2, ahead=2)
    assert next(batches) == 0
    with pytest.raises(ZeroDivisionError):
        next(batches)
    assert threading.active_count() == before


def test_a_wait_may_be_ended_and_who_waits_in_a_chunk_is_left_behind(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("_LOOK_SECONDS", "_ENDING_SECONDS"):
        monkeypatch.setattr(prefetch, name, 0.01)
    away, next_begun, asked = threading.Event(), threading.Event(), []

    def meanwhile() -> None:
        asked.append(None)
        if len(asked) == 3:
            raise ZeroDivisionError

    batches = made_ahead(
        iter([Numbered(0, [away.wait]), Numbered(1, [next_begun.set])]),
        threads=1,
        ahead=1,
        meanwhile=meanwhile,
    )
    with pytest.raises(ZeroDivisionError):
        next(batches)
    (left,) = [thread for thread in threading.enumerate() if thread.name == "loader-0"]
    assert left.daemon, "or the program would wait for it"
    away.set()
    left.join(60)
    assert not left.is_alive() and not next_begun.is_set()
