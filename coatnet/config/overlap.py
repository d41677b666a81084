"""Where gradients can be exchanged while the backward pass runs. The plan and the run ask here."""

from __future__ import annotations


def can_overlap(*, zero_stage: int, precision: str) -> bool:
    """Return whether DeepSpeed can; elsewhere it reduces after the backward pass, all the same."""
    return zero_stage > 1 or (zero_stage == 1 and precision != "bf16")
