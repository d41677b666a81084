"""The vote of the nearest neighbours, by which a second corpus tells how the features will transfer."""

from __future__ import annotations

import torch
from torch.nn import functional

from pretrain.transfer import neighbour_accuracy


def test_neighbours_of_well_parted_classes_vote_right_and_no_row_votes_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = functional.one_hot(labels, 8).float()
    features = functional.normalize(centres + 0.05 * torch.randn(60, 8, generator=generator), dim=1)
    assert neighbour_accuracy(features, labels, neighbours=5) == 1.0
    assert (
        neighbour_accuracy(functional.one_hot(torch.arange(8)).float(), torch.arange(8), neighbours=1) == 0.0
    )


def test_more_neighbours_than_there_are_rows_are_all_the_others() -> None:
    features = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    assert neighbour_accuracy(features, torch.tensor([0, 0, 1]), neighbours=10) >= 1 / 3
