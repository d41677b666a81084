"""From what a user types to plans: the plan's own words (nodes, hardware, …) and the config's overrides."""

from __future__ import annotations

import difflib
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from cluster.planning.calibration import BASE, calibrate, calibrated, mean_rates
from cluster.planning.estimate import MOST_GPUS, make_plan, memory_choices
from cluster.planning.hardware import Hardware, hardware_names, load_hardware
from cluster.planning.plan import MemoryChoice, Plan
from cluster.planning.recipe_view import RecipeView, view
from cluster.planning.remedies import quicker, remedies
from cluster.recipe import read_recipe
from coatnet.config import UserError, to_dict

_OWN = ("nodes", "gpus_per_node", "hardware", "epoch_samples")
_MOST_LAYOUTS = 200
_OTHER_FORMS = {"mig", "pcie", "nvl", "40gb"}


@dataclass(frozen=True)
class _Asked:
    """A recipe, and the machine that it is to be planned for."""

    recipe: RecipeView
    hardware: Hardware
    nodes: int


def calibrated_words(path: Path, given: Sequence[str]) -> list[str]:
    """Measure this machine into a hardware file, and return the words that plan for it.

    Raises:
        UserError: they name another hardware, or measuring failed.
    """
    own, rest = _split(given)
    if "hardware" in own:
        raise UserError(f"hardware={own['hardware']} and --calibrate {path} exclude each other; give one")
    per_node = own.get("gpus_per_node", str(load_hardware(BASE).gpus_per_node))
    calibrate(path, ranks=_count(per_node, name="gpus_per_node"))
    return [*(f"{key}={value}" for key, value in own.items()), f"hardware={path}", *rest]


def plan_of(command: str | None, config: Path, given: Sequence[str]) -> tuple[Plan, list[MemoryChoice]]:
    """Return the plan of one layout, and its memory under every ZeRO stage.

    Args:
        command: whose config it is; None finds out.
        config: its file.
        given: the plan's own words and the config's overrides.

    Raises:
        UserError: the config or a word is wrong.
    """
    asked = _read(command, config, given)
    plan = make_plan(**vars(asked))
    return plan, memory_choices(asked.recipe, plan=plan, hardware=asked.hardware)


def advice_of(
    command: str | None, config: Path, given: Sequence[str], *, plan: Plan
) -> tuple[list[str], dict[str, float]]:
    """Return words under which the plan of the same words would fit, and under which it would be quicker.

    The former where it does not fit; the latter where it does, with the share of a step that each spares.
    """
    asked = _read(command, config, given)
    if plan.fits:
        return [], quicker(asked.recipe, plan=plan, hardware=asked.hardware)
    return remedies(asked.recipe, plan=plan, hardware=asked.hardware), {}


def plan_run(
    config: dict[str, Any],
    *,
    world_size: int,
    ranks_per_node: int,
    device: str,
    rates: Sequence[Sequence[dict[str, Any]]] = (),
) -> dict[str, Any] | None:
    """Return the plan of a run that begins, as plan.json; None where no profile is of its nodes.

    Args:
        ranks_per_node: as many on every node, or there is no plan.
        rates: what the ranks attain on a CPU, if they have measured it.

    Raises:
        UserError: the config leaves open what a plan needs.
    """
    name = BASE if device == "cpu" else _profile_of(device)
    if name is None or world_size % ranks_per_node:
        return None
    hardware = load_hardware(name, gpus_per_node=ranks_per_node)
    if rates:
        hardware = replace(calibrated(hardware, mean_rates(rates)), name=f"{name}, measured")
    recipe = view(config, origin="this run")
    return make_plan(recipe, hardware=hardware, nodes=world_size // ranks_per_node).to_dict()


def _profile_of(device: str) -> str | None:
    """Return the profile whose name stands in the device's, as h100 in "NVIDIA H100 80GB HBM3".

    They are of SXM modules: a part of a card ("… MIG 1g.10gb") has none, nor have slower and smaller forms.
    """
    words = set(re.split(r"[ -]", device.lower()))
    return None if words & _OTHER_FORMS else next((name for name in hardware_names() if name in words), None)


def compare_plans(
    command: str | None, config: Path, given: Sequence[str]
) -> tuple[list[Plan], dict[str, str]]:
    """Return a plan for every combination of the lists among the words, and why others have none.

    Raises:
        UserError: no combination is possible, or there are too many.
    """
    alternatives = [_alternatives(word) for word in given]
    combinations = list(itertools.product(*alternatives))
    if len(combinations) > _MOST_LAYOUTS:
        raise UserError(f"{len(combinations)} layouts to compare; allowed: up to {_MOST_LAYOUTS}")
    plans: list[Plan] = []
    refused = {}
    for words in combinations:
        try:
            plan = make_plan(**vars(_read(command, config, words)))
        except UserError as error:
            varied = [word for word, several in zip(words, alternatives, strict=True) if len(several) > 1]
            refused[" ".join(varied)] = str(error)
        else:
            if plan not in plans:  # fine-tuning cuts a micro-batch to the share of a rank
                plans.append(plan)
    if not plans:
        raise UserError(list(refused.values())[-1])
    return plans, refused


def scaling_plans(command: str | None, config: Path, given: Sequence[str]) -> tuple[list[Plan], str]:
    """Return plans from one GPU to 1,024 at the config's global batch, and what a run would say to them.

    Where a rank's share is smaller than the micro-batch, it is the micro-batch, and batch norm's group.
    Pretraining refuses that from a config that says otherwise.

    Raises:
        UserError: the batch can be cut for no number of GPUs.
    """
    asked = _read(command, config, given)
    recipe, hardware = asked.recipe, asked.hardware
    plans, refusals, unlike = [], list[str](), ""
    gpus = 1
    while gpus <= MOST_GPUS:
        per_node = min(gpus, hardware.gpus_per_node)
        nodes = gpus // per_node
        share = max(1, recipe.global_batch // (nodes * per_node))
        micro_batch, group = (min(size or share, share) for size in (recipe.micro_batch, recipe.group_images))
        smaller = replace(recipe, micro_batch=micro_batch, group_images=min(group, micro_batch))
        try:
            machine = replace(hardware, gpus_per_node=per_node)
            plans.append(make_plan(smaller, hardware=machine, nodes=nodes))
        except UserError as error:
            refusals.append(str(error))
        else:
            if recipe.is_pretraining and micro_batch < (recipe.micro_batch or 0) and not unlike:
                unlike = f"from {gpus} GPUs on a run must be given train.micro_batch={micro_batch} or less"
        gpus *= 2
    if not plans:
        raise UserError(refusals[0])
    return plans, unlike


def _read(command: str | None, config: Path, given: Sequence[str]) -> _Asked:
    own, rest = _split(given)
    counts = {name: _count(own[name], name=name) for name in _OWN if name in own and name != "hardware"}
    resolved = to_dict(read_recipe(command, config, overrides=rest))
    return _Asked(
        recipe=view(resolved, origin=str(config), epoch_samples=counts.get("epoch_samples")),
        hardware=load_hardware(own.get("hardware", "h100"), gpus_per_node=counts.get("gpus_per_node")),
        nodes=counts.get("nodes", 1),
    )


def _split(given: Sequence[str]) -> tuple[dict[str, str], list[str]]:
    """Part the plan's own words from the config's overrides.

    Raises:
        UserError: a word is none of them and no section's key, but resembles one of the plan's own.
    """
    own, rest = dict[str, str](), []
    for word in given:
        name, equals, value = word.partition("=")
        near = difflib.get_close_matches(name, _OWN, n=1, cutoff=0.75)
        if name in _OWN:
            own[name] = value
        elif equals and "." not in name and near:
            raise UserError(f"{word!r}: did you mean {near[0]}?")
        else:
            rest.append(word)
    return own, rest


def _count(text: str, *, name: str) -> int:
    if not text.isdecimal() or int(text) < 1:
        raise UserError(f"{name} is {text!r}; allowed: a number from 1 on (lists, as 8,64, need --compare)")
    return int(text)


def _alternatives(word: str) -> list[str]:
    key, _, value = word.partition("=")
    if value.startswith(("[", "{")):
        return [word]
    return [f"{key}={one}" for one in value.split(",")]
