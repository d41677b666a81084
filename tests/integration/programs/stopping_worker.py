"""`pretrain.worker`, except that the first rank asks the launcher for an end in its third step.

It goes on when the launcher has passed that on: however busy the machine is, the run is still under way.
"""

from __future__ import annotations

import os
import signal
import time
from collections.abc import Sequence
from typing import Any

from coatnet.runtime.endings import run_rank
from coatnet.runtime.stop import StopFlag
from pretrain import worker


def main(arguments: Sequence[str]) -> None:
    from pretrain.trainer import Trainer

    take_step, taken, asked = Trainer.step, [], []
    request = StopFlag.request

    def step(self: Trainer, *given: Any, **options: Any) -> Any:
        if options["learning_rate"] > 0:  # not the rehearsal
            taken.append(None)
        if len(taken) == 3 and self.engine.ranks.is_main:
            os.kill(os.getppid(), signal.SIGTERM)
            while not asked:
                time.sleep(0.01)
        return take_step(self, *given, **options)

    def noted(self: StopFlag, reason: str) -> None:
        request(self, reason)
        asked.append(reason)

    Trainer.step, StopFlag.request = step, noted  # type: ignore[method-assign]
    worker.main(arguments)


if __name__ == "__main__":
    run_rank(main)
