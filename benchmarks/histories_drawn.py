"""What `benchmarks/histories.py` draws: the corpora, the settings of a trial and its history."""

from __future__ import annotations

import json
import random
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import kills
import yaml

from data_pipeline.sharding.options import ShardOptions
from data_pipeline.sharding.sharder import shard_corpus

_STRIKES = (
    "a rank",
    "all ranks",
    "launcher",
    "a rank in a save",
    "all ranks in a save",
    "SIGTERM",
    "full disk",
)
_PHASES = [{"image_size": 32, "share": 2}, {"image_size": 64, "share": 1}]
_BOTH = """
seed: [1, 2, 3]
norm: [{momentum: 0.1}, {momentum: 0.1, group_images: 2}]
augment:
- {image_size: 32}
- {image_size: 32, mixup: 0.3, cutmix: 1, randaugment_n: 2, randaugment_m: 9, erasing: 0.3}
loss.name: [softmax, sigmoid]
optimizer: [{clip: 0}, {betas: [0, 0.9]}, {betas: [0.8, 0.95], clip: 0.1, learning_rate: 0.002}]
schedule.shape: [cosine, linear, constant]
schedule.warmup: [0 steps, 3 steps, 0.3 epochs, 50 samples]
ema: [0, 0.9]
train.micro_batch: [2, 4]
evaluate.every: [1 steps, 5 steps, 1 epochs, 50 steps]
save.every: [1 steps, 2 steps, 3 steps, 49 samples, 1 epochs, 1 seconds, 50 steps]
save.last: [1, 2, 4]
data.lanes: [240, 4]
data.threads: [1, 2]
data.bad_sample_budget: [1]
data.tail: [continue, drop, mask]
"""
_OF_STAGE = {
    "pretrain": """
model: [{stochastic_depth: 0.2}, {pooling: average}, {layout: C-C-C-T}]
launch.ranks: [1, 2, 2, 3]
zero:
- {stage: 0}
- {stage: 1}
- {stage: 1, bucket_elements: 5000}
- {stage: 2}
- {stage: 3}
- {stage: 3, persist_elements: 0}
precision: [fp32, fp32, autocast, bf16]
norm.sync: [none, none, node, all]
train.activation_checkpointing: [[], [S1], [S2, S3, S4]]
guard: [{}, {digest_every: 1}, {spike: skip}, {spike: rollback}]
""",
    "finetune": """
model: [{}]
launch.ranks: [1, 1, 2]
stochastic_depth: [null, 0.2]
freeze: [[], [], [S0, S1], [S0, S1, S2, S3, S4, dense]]
optimizer.layer_decay: [1, 0.7]
precision: [fp32, bf16]
zero: [0, 0, 1, 2]
train.patience: [0, 0, 2]
seeds: [[], [], [], [0, 4]]
""",
}


@dataclass
class Trial:
    """A run and what happens to it.

    Attributes:
        elastic: it changes its ranks and ZeRO stage on the way.
        changes: settings of which one comes wherever the history says so.
        struck: what has met a living run.
    """

    stage: str
    elastic: bool
    settings: dict[str, Any]
    history: list[str]
    changes: list[dict[str, Any]]
    chance: random.Random
    struck: list[str] = field(default_factory=list)


def write_corpora(folder: Path) -> None:
    """Write shards of one label and of several per image, some of them with bad samples."""
    for name, images in (("one", 52), ("two", 37), ("bad", 44), ("test", 19)):
        kills.write_images(folder / name, images=images)
        files = sorted((folder / name).glob("*/*.jpg"))
        for kind in ("single", "multi"):
            table, shards = folder / name / f"{kind}.jsonl", folder / name / kind
            rows = [{"path": str(file.relative_to(table.parent))} for file in files]
            for number, (row, file) in enumerate(zip(rows, files, strict=True)):
                several = {f"class{at}": 1.0 for at in range(kills.CLASSES) if number % 15 + 1 >> at & 1}
                row |= {"labels": several} if kind == "multi" else {"label": file.parent.name}  # type: ignore[dict-item]
            table.write_text("\n".join(map(json.dumps, rows)))
            shard_corpus(table, shards, options=ShardOptions(shard_samples=9, workers=1), quiet=True)
            for shard in sorted(shards.glob("*.tar"))[: 2 if name == "bad" else 0]:
                content = shard.read_bytes()
                shard.write_bytes(content[:700] + bytes(60) + content[760:])


def draw(chance: random.Random, data: Path) -> Trial:
    """Draw a trial."""
    pick = chance.choice
    stage, elastic = pick([("pretrain", False)] * 3 + [("pretrain", True)] + [("finetune", False)] * 2)
    given = {key: pick(values) for key, values in yaml.safe_load(_BOTH + _OF_STAGE[stage]).items()}
    kind = pick(("single", "single", "single", "multi"))
    corpora = chance.sample(("one", "two", "bad"), pick((1, 1, 2)))
    steps, batch = chance.randint(8, 14), given["launch.ranks"] * given["train.micro_batch"] * pick((1, 2, 3))
    given["model"] = {"depths": [1] * 5, "widths": [8, 16, 16, 32, 32], **given["model"]}
    given["data.train"] = [{"path": f"{data}/{name}/{kind}", "weight": pick((1, 2.5))} for name in corpora]
    given["data.evaluate"] = pick((None, *[f"{data}/test/{kind}"] * 3))
    given["train.duration"] = pick((f"{steps} steps", f"{steps * batch + 3} samples"))
    if kind == "multi":
        given["loss.name"] = "sigmoid"
    if len(corpora) > 1:
        given["data.tail"] = "continue"
    history, changes = draw_history(chance, elastic=elastic), [{"data.threads": 3}, {"data.prefetch": 1}]
    if elastic:
        batch, changes = 24, [{"launch.ranks": n, "zero.stage": s} for n in (1, 2, 3) for s in range(4)]
        given |= {"precision": "fp32", "norm.sync": "none", "guard": {}, "train.duration": f"{steps} steps"}
        given["norm"]["group_images"], given["model"]["pooling"] = 2, "average"
    elif chance.random() < 0.3:
        given["train.phases"] = _PHASES
    elif stage == "pretrain" and given["data.tail"] == "continue" and chance.random() < 0.4:
        given["train.batch_changes"] = [{"at": f"{steps // 2} steps", "global_batch": 2 * batch}]
    if "spike" in given.get("guard", {}):
        given["guard"] |= {"spike_window": 6, "spike_score": 4, "max_skipped": 50, "max_rollbacks": 50}
        given["save.every"] = "1 steps"  # before the first save no rollback is possible
    if stage == "finetune":
        given |= {"init": None, "model": {"name": "coatnet_0", **given["model"]}}
        given["train.patience"] *= given["data.evaluate"] is not None
        history, changes = [one for one in history if one != "force"], [{"save.last": 3}]
    given["train.global_batch"] = batch
    return Trial(stage, elastic, given, history, changes, chance)


def draw_history(chance: random.Random, *, elastic: bool) -> list[str]:
    """Draw what happens: one to three strikes, and changes between them."""
    history = []
    for _ in range(chance.randint(1, 3)):
        if elastic:
            history += ["changes"]
        history += chance.choice(([], [], ["flipped bit"], ["changes"], ["force"]))
        history += [chance.choice(_STRIKES[:-1] if elastic else _STRIKES)]
    return history
