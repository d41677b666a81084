"""How ranks leave an evaluation together."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest

from coatnet.runtime.ranks import Ranks
from coatnet.runtime.stop import Stopped
from coatnet.training.way_out import WayOut


class Mailbox(dict[str, bytes]):
    """As torch's store, of one process."""

    def check(self, keys: list[str]) -> bool:
        return all(key in self for key in keys)

    def set(self, key: str, text: str) -> None:
        self[key] = text.encode()


class Two(Ranks):
    """One of two ranks, the other of which has not left."""

    def any(self, flag: bool) -> bool:
        return flag


def waiting(way_out: WayOut) -> Iterator[int]:
    """A batch, and then none for as long as nobody is told to stop."""
    yield 1
    while True:
        way_out.look()


def test_a_rank_that_was_told_leaves_where_its_batch_does_not_come_and_others_that_were_told_follow() -> None:
    mailbox: Any = Mailbox()
    one, other = (
        WayOut(Two(rank, 2, distributed=True, mailbox=mailbox), is_told=lambda: told) for rank in (0, 1)
    )
    told = False
    batches = other.before_the_end_of(iter(range(9)))
    assert next(batches) == 0
    told = True
    assert next(batches) == 1, "its images come, and nobody has left"
    assert [*one.before_the_end_of(waiting(one))] == [1] and one.taken
    told = False
    assert next(batches) == 2, "it knows of no stop"
    told = True
    assert [*batches] == [] and other.taken
    for rank in (one, other):
        with pytest.raises(Stopped):
            rank.agree()


def test_nobody_leaves_an_evaluation_whose_images_come() -> None:
    way_out = WayOut(Ranks(), is_told=lambda: True)
    assert [*way_out.before_the_end_of(iter(range(3)))] == [0, 1, 2]
    way_out.agree()
    assert not way_out.taken
