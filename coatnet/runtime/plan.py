"""What a run is expected to need, kept in plan.json beside what it then measures.

Packages that can plan declare a function as an entry point of the group `coatnet.planners`; it is given the
resolved config, the ranks and what they attain, and returns numbers under the names that metrics have, or
None where it knows no such machine. Imports no torch; a run never depends on it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import TYPE_CHECKING, Any

from coatnet.config import UserError
from coatnet.runtime.run_directory import RunDirectory, write_atomically

if TYPE_CHECKING:
    from coatnet.runtime.ranks import Ranks

_GROUP = "coatnet.planners"


def write_plan(run: RunDirectory, *, config: dict[str, Any], ranks: Ranks, rates: Sequence[Any] = ()) -> None:
    """Write plan.json, if somebody can plan this run.

    Args:
        config: resolved, as plain containers.
        ranks: that run it.
        rates: what each rank attains in single operations, if that was measured.
    """
    for point in entry_points(group=_GROUP):
        try:
            plan = point.load()(
                config,
                world_size=ranks.world_size,
                ranks_per_node=ranks.local_world_size,
                device=ranks.device_name,
                rates=rates,
            )
        except UserError as error:  # a config that trains, but that a plan cannot judge
            run.record_event("no_plan", reason=str(error))
            continue
        if plan is not None:
            write_atomically(run.plan, json.dumps(plan, indent=2) + "\n")
            return
