"""How gradients are exchanged, and where that can be while the backward pass runs.

The plan and the run ask here, so that one counts on what the other does.
"""

from __future__ import annotations

# At stage 3 so large a part of the model is gathered, reduced and updated at a time, and so large a part is
# reduced while the backward pass makes the next one. DeepSpeed's own limits (1e9 weights) hold whole models
# of this family again: 28.0 bytes per parameter at the peak of a step instead of 17.5, at two ranks in fp32.
WINDOWS = 8
# Of such a part at stage 3: gathered weights, the bucket, its copy on the way, what AdamW is at.
WINDOW_COPIES = 4


def can_overlap(*, zero_stage: int, precision: str) -> bool:
    """Return whether DeepSpeed can; elsewhere it reduces after the backward pass, all the same."""
    return zero_stage > 1 or (zero_stage == 1 and precision != "bf16")
