"""The order of a run's samples, from its corpora and config. Imports no torch: login nodes look at it too."""

from __future__ import annotations

from collections.abc import Sequence

from coatnet.config import UserError
from data_pipeline.config import DataConfig
from data_pipeline.mixture import Mixture
from data_pipeline.order import Order, PositionOrder
from data_pipeline.permutation import derive_key
from data_pipeline.record import SampleSource

_CORPUS = 4  # a key's purpose; the orders' own are 1 to 3


def make_order(
    corpora: Sequence[SampleSource], data: DataConfig, *, seed: int, global_batch: int
) -> PositionOrder:
    """Return the order of a mixture of corpora.

    Raises:
        UserError: a corpus without samples, one that does not fill a step when the tail is dropped, or an end
            of an epoch that several corpora do not have in common.
    """
    if data.tail != "continue" and len(corpora) > 1:
        raise UserError(f"data.tail is {data.tail!r} with several corpora; allowed there: continue")
    orders = []
    for number, corpus in enumerate(corpora):
        dropped = corpus.samples % global_batch if data.tail == "drop" else 0
        if corpus.samples - dropped < 1:
            raise UserError(
                f"data.train[{number}]: holds {corpus.samples} samples, less than one global_batch of "
                f"{global_batch}; allowed: a smaller batch, or data.tail=continue"
            )
        orders.append(
            Order(
                corpus.counts,
                seed=derive_key(seed, _CORPUS, number),
                lanes=data.lanes,
                window=data.window,
                epoch_samples=corpus.samples - dropped,
            )
        )
    if len(orders) == 1:
        return orders[0]
    try:
        return Mixture(orders, [entry.weight for entry in data.train], seed=derive_key(seed, _CORPUS))
    except ValueError as error:
        raise UserError(f"data.train: {error}") from None
