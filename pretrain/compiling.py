"""Gives torch.compile its own class in the time account, whenever it happens. Knows no model."""

from __future__ import annotations

from torch._dynamo.callback import CallbackArgs, callback_handler

from coatnet.runtime.account import TimeAccount


class CompileClock:
    """Counts what dynamo and inductor take, also for backward passes and later variants, to `compile`."""

    def __init__(self, account: TimeAccount) -> None:
        self._account = account

    def attach(self) -> None:
        """Be told of every compilation in this process."""
        callback_handler.register_start_callback(self._begin)
        callback_handler.register_end_callback(self._end)

    def _begin(self, about: CallbackArgs) -> None:
        self._account.enter("compile")

    def _end(self, about: CallbackArgs) -> None:
        self._account.leave()
