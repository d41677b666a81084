"""Says when torch.compile is at work: its time has a class of its own, and is no hang. Knows no model."""

from __future__ import annotations

from collections.abc import Callable


def on_compilation(begin: Callable[[], None], end: Callable[[], None]) -> None:
    """Call `begin` and `end` around every compilation here, of backward passes and later variants too."""
    from torch._dynamo.callback import callback_handler  # seconds, that only a run need wait for

    callback_handler.register_start_callback(lambda about: begin())
    callback_handler.register_end_callback(lambda about: end())
