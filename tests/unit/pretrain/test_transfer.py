"""The vote of the nearest neighbours, by which a second corpus tells how the features will transfer."""

from __future__ import annotations

import pytest
import torch
from torch.nn import functional

from pretrain import transfer
from pretrain.transfer import right_votes


def test_neighbours_of_well_parted_classes_vote_right_and_no_row_votes_for_itself() -> None:
    generator = torch.Generator().manual_seed(0)
    labels = torch.arange(60) % 3
    centres = functional.one_hot(labels, 8).float()
    features = functional.normalize(centres + 0.05 * torch.randn(60, 8, generator=generator), dim=1)
    assert right_votes(features, labels, neighbours=5) == 60
    assert right_votes(functional.one_hot(torch.arange(8)).float(), torch.arange(8), neighbours=1) == 0


def test_more_neighbours_than_there_are_rows_are_all_the_others() -> None:
    features = functional.normalize(torch.tensor([[1.0, 0.0], [1.0, 0.1], [0.0, 1.0]]), dim=1)
    assert right_votes(features, torch.tensor([0, 0, 1]), neighbours=10) >= 1


@pytest.mark.parametrize("shares", [1, 3, 12])
def test_the_ranks_shares_of_the_votes_add_up_to_all_of_them_whatever_fits_at_once(
    monkeypatch: pytest.MonkeyPatch, shares: int
) -> None:
    generator = torch.Generator().manual_seed(1)
    features = functional.normalize(torch.randn(50, 8, generator=generator), dim=1)
    labels, blocks = torch.arange(50) % 4, list[None]()
    whole = right_votes(features, labels, neighbours=5)
    assert 0 < whole < 50
    monkeypatch.setattr(transfer, "_MOST_SIMILARITIES", 50 * 7)  # the last of eight blocks holds a row
    own = [
        right_votes(
            features, labels, neighbours=5, share=rank, shares=shares, breathe=lambda: blocks.append(None)
        )
        for rank in range(shares)
    ]
    assert sum(own) == whole and len(blocks) == 8
    monkeypatch.setattr(transfer, "_MOST_SIMILARITIES", 49)
    assert right_votes(features, labels, neighbours=5) == whole, "a row at a time"
