"""A checkpoint of another version of the program is refused in a line."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.runtime.account import TimeAccount
from coatnet.runtime.ranks import Ranks
from coatnet.training.checkpoints import Checkpoints, Stream
from coatnet.training.sections import SaveConfig
from coatnet.training.state import RunState


class _Stream:
    def state(self) -> dict[str, Any]:
        return {}

    def check(self, saved: dict[str, Any]) -> None:
        assert saved == {}


def test_progress_that_this_version_does_not_know_is_refused(tmp_path: Path) -> None:
    checkpoints: Checkpoints[RunState] = Checkpoints(
        tmp_path / "new",
        SaveConfig(),
        engine=cast(Any, SimpleNamespace(fragments=list)),
        stream=cast(Stream, _Stream()),
        ranks=Ranks.single(),
        lease=None,
        account=TimeAccount(tmp_path / "account", rank=0, life=1, age_seconds=0.0),
        facts={"kind": "finetune"},
        alarm=print,
        state_type=RunState,
    )
    store = CheckpointStore(tmp_path / "new", ranks=Ranks.single())
    store.save(
        step=1,
        samples_seen=8,
        fragments=[],
        facts={"kind": "finetune", "data": {}, "progress": {"samples_seen": 8, "best_top1": 0.5}},
    )
    store.close()
    with pytest.raises(UserError, match=r"step-00000001: was written by another version .*'best_top1'"):
        checkpoints.resume()
    checkpoints.close()
