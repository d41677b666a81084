"""What would make a layout fit, or quicker: changes of one kind each, every one of them planned again."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace

from cluster.planning.estimate import ALL_STAGES, MOST_GPUS, make_plan
from cluster.planning.hardware import Hardware
from cluster.planning.plan import Plan
from cluster.planning.recipe_view import RecipeView
from coatnet.config import UserError
from coatnet.config.overlap import can_overlap

_WORTH_TELLING = 0.03  # of a step
Change = tuple[str, RecipeView, int]  # what to write, what it makes of the recipe, nodes


def remedies(recipe: RecipeView, *, plan: Plan, hardware: Hardware) -> list[str]:
    """Return words for the command line, the least change of each kind that fits.

    The last one, where nothing else helps, is everything at once; empty if not even that fits.
    """

    def fits(change: Change) -> bool:
        return _planned(change, hardware=hardware) is not None

    kinds = [_smaller_batches, _higher_stages, _checkpointed, _more_nodes]
    found = [next(filter(fits, kind(recipe, plan)), None) for kind in kinds]
    words = [change[0] for change in found if change is not None]
    return words or [change[0] for change in filter(fits, _everything(recipe, plan))][:1]


def quicker(recipe: RecipeView, *, plan: Plan, hardware: Hardware) -> dict[str, float]:
    """Return words for the command line and the share of a step that each spares, the greatest first.

    They change how the step is computed, not what: no batch, no group of batch norm, no number of nodes.
    """
    found: dict[str, float] = {}
    for kind in (_beside, _compiled, _kept, _lower_stages, _larger_batches):
        for change in kind(recipe, plan):
            made = _planned(change, hardware=hardware)
            if made is not None:
                spared = 1 - made.step_seconds / plan.step_seconds
                found |= {change[0]: spared} if spared >= _WORTH_TELLING else {}
                break
    return dict(sorted(found.items(), key=lambda one: -one[1]))


def _planned(change: Change, *, hardware: Hardware) -> Plan | None:
    """Return what a change makes of a plan, if it fits."""
    try:
        made = make_plan(change[1], hardware=hardware, nodes=change[2])
    except UserError:  # the batch does not divide, or checkpoints would be of too many pieces
        return None
    return made if made.fits else None


def _beside(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    given = recipe.layout
    possible = can_overlap(zero_stage=given.zero_stage, precision=given.precision)
    if recipe.is_pretraining and plan.world_size > 1 and possible and not given.overlap:
        yield "zero.overlap_communication=true", recipe.laid_out(overlap=True), plan.nodes


def _compiled(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    if not recipe.layout.compiled and not plan.in_process:
        yield "compile=true", recipe.laid_out(compiled=True), plan.nodes


def _kept(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    if recipe.layout.checkpointing:
        yield "train.activation_checkpointing=[]", recipe.laid_out(checkpointing=()), plan.nodes


def _lower_stages(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    given = recipe.layout
    for stage in range(1, given.zero_stage):
        if not given.overlap or can_overlap(zero_stage=stage, precision=given.precision):
            yield f"{recipe.stage_key}={stage}", recipe.laid_out(zero_stage=stage), plan.nodes


def _larger_batches(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    """Yield micro-batches above the plan's, the largest first, where norm's groups do not follow them."""
    share, group = plan.global_batch // plan.world_size, recipe.group_images
    for size in range(share, plan.layout.micro_batch, -1):
        if group and share % size == 0 and size % group == 0:
            yield f"train.micro_batch={size}", replace(recipe, micro_batch=size), plan.nodes


def _smaller_batches(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    """Yield the micro-batches below the plan's that cut a rank's share evenly, and norm's groups them."""
    share, group = plan.global_batch // plan.world_size, recipe.group_images or 1
    for size in range(plan.layout.micro_batch - 1, 0, -1):
        if share % size == 0 and size % group == 0:
            yield f"train.micro_batch={size}", replace(recipe, micro_batch=size), plan.nodes


def _higher_stages(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    if plan.world_size == 1:
        return
    for stage in range(recipe.layout.zero_stage + 1, recipe.highest_stage + 1):
        yield f"{recipe.stage_key}={stage}", recipe.laid_out(zero_stage=stage), plan.nodes


def _checkpointed(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    if not recipe.is_pretraining:
        return
    for count in range(1, len(ALL_STAGES) + 1):
        chosen = tuple(sorted({*ALL_STAGES[:count], *recipe.layout.checkpointing}))
        if chosen != recipe.layout.checkpointing:
            word = f"train.activation_checkpointing=[{','.join(chosen)}]"
            yield word, recipe.laid_out(checkpointing=chosen), plan.nodes


def _more_nodes(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    nodes = 2 * plan.nodes
    while nodes * plan.world_size <= MOST_GPUS * plan.nodes:
        yield f"nodes={nodes}", recipe, nodes
        nodes *= 2


def _everything(recipe: RecipeView, plan: Plan) -> Iterator[Change]:
    """Yield all changes together, on more and more nodes."""
    words: list[str] = []
    for kind in (_higher_stages, _checkpointed):
        for word, changed, _ in list(kind(recipe, plan))[-1:]:
            words.append(word)
            recipe = changed
    # at every micro-batch, the largest first, on as few nodes as possible
    for _, _, nodes in [("", recipe, plan.nodes), *_more_nodes(recipe, plan)]:
        on_nodes = [f"nodes={nodes}"] if nodes > plan.nodes else []
        yield " ".join([*words, *on_nodes]), recipe, nodes
        for word, changed, _ in _smaller_batches(recipe, plan):
            yield " ".join([word, *words, *on_nodes]), changed, nodes
