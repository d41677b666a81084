"""What ranks hold alike as long as none is corrupt, and how a run ends where they do not."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Hashable, Sequence
from typing import NoReturn

from coatnet.runtime.endings import Distrusted
from coatnet.runtime.ranks import Ranks


def outvoted(said: Sequence[Hashable]) -> list[int] | None:
    """Return the ranks that say otherwise than most, none where there is no majority; None if all agree."""
    common, votes = Counter(said).most_common(1)[0]
    if votes == len(said):
        return None
    decided = 2 * votes > len(said)
    return [rank for rank, one in enumerate(said) if decided and one != common]


def distrust(wrong: Sequence[int], *, what: str, when: str, ranks: Ranks) -> NoReturn:
    """End where ranks do not hold the same; all of them call this.

    The rank that is wrong ends first: whoever starts it anew takes that one's word for the reason, and its
    node for the cause.

    Args:
        wrong: as `outvoted` found them.
        what: they hold, in the plural.
        when: it was found.
        ranks: who they are.

    Raises:
        Distrusted: always.
    """
    differ = f"differ from the others' {when}"
    advice = "the same command goes on from the last checkpoint, which is whole"
    if not wrong:
        raise Distrusted(f"the ranks' {what} {differ}, and none has a majority; {advice}")
    if ranks.rank not in wrong:
        ranks.barrier()
    raise Distrusted(
        f"silent corruption: the {what} of ranks {wrong} {differ}; {advice}; leave that node out if it "
        "happens again"
    )


def require_one_verdict(norms: Sequence[float], *, samples_seen: int, ranks: Ranks) -> None:
    """Make sure that all ranks took a step or none did, before the next collective: some would not come.

    Args:
        norms: of the gradient, as each rank found it; one that is not finite is of a rank that refused.
        samples_seen: before the step.
        ranks: who they are.

    Raises:
        Distrusted: some ranks refused the step, and others took it.
    """
    wrong = outvoted([math.isfinite(one) for one in norms])
    if wrong is not None:
        when = f"in the step after {samples_seen:,} images, which not all refused"
        distrust(wrong, what="gradients", when=when, ranks=ranks)
