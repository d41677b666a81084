"""A run's newest checkpoint, and the comparison of two to the bit."""

from __future__ import annotations

from pathlib import Path

import torch

from coatnet.checkpoint.fragments import KINDS
from coatnet.checkpoint.reader import Checkpoint
from coatnet.checkpoint.store import CheckpointStore
from coatnet.runtime.ranks import Ranks


def newest(folder: Path) -> Checkpoint:
    """Return the newest whole checkpoint of a store."""
    checkpoint = CheckpointStore(folder, ranks=Ranks()).newest()
    assert checkpoint is not None
    return checkpoint


def assert_same_tensors(one: Checkpoint, other: Checkpoint) -> None:
    """Compare every tensor of every kind."""
    assert one.names("weight")
    for kind in KINDS:
        assert one.names(kind) == other.names(kind)
        for name in one.names(kind):
            assert torch.equal(one.tensor(kind, name), other.tensor(kind, name)), (kind, name)
