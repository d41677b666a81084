"""What forked ranks run: each function here is called on every rank of a fresh gloo group."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from unittest import mock

import torch
from called import calls_around
from faulty_runs import counted_run as counted_run
from faulty_runs import finetune_run as finetune_run
from faulty_runs import hanging_run as hanging_run
from faulty_runs import lone_refusal as lone_refusal
from faulty_runs import pretrain_run as pretrain_run
from faulty_runs import suspended_run as suspended_run
from sent import sent_bytes
from torch.nn.parallel import DistributedDataParallel
from typed import typed as typed

from coatnet.checkpoint.store import CheckpointStore
from coatnet.config import UserError
from coatnet.model.config import ModelConfig, NormConfig
from coatnet.model.initial import Placed
from coatnet.model.network import build_model
from coatnet.model.norm import GroupBatchNorm, commit_statistics, defer_statistics
from coatnet.runtime.ranks import Ranks
from coatnet.training.losses import make_loss
from coatnet.training.optimizer import parameter_groups
from coatnet.training.schedule import LearningRate
from coatnet.training.sections import OptimizerConfig, ZeroConfig
from data_pipeline import corpus
from data_pipeline.class_weights import loss_weights
from finetune.evaluation.request import EvaluationRequest, evaluate
from pretrain import tune
from pretrain.engine import flattening
from pretrain.engine.engine import Engine
from pretrain.engine.sharding import sharder
from pretrain.engine.start import load_deepspeed
from pretrain.health import Health
from pretrain.replay import replay
from pretrain.sections import GuardConfig
from pretrain.trainer import Trainer
from pretrain.worker import main

TINY = ModelConfig(num_classes=5, image_size=32, depths=[1, 1, 1, 1, 1], widths=[8, 16, 16, 32, 32])
GROUP, GLOBAL_BATCH, RATE = 2, 16, 1e-3
KINDS = ("weight", "exp_avg", "exp_avg_sq", "ema", "buffer")


def tiny_model(seed: int = 1, placed: Placed | None = None) -> torch.nn.Module:
    model = build_model(TINY, norm=NormConfig(group_images=GROUP), seed=seed, placed=placed)
    defer_statistics(model)
    return model


def tiny_engine(
    ranks: Ranks, *, stage: int, clip: float = 1.0, precision: str = "fp32", seed: int = 1, **zeros: Any
) -> Engine:
    # several buckets, and at stage 3 several sub-groups
    zero = ZeroConfig(stage=stage, **{"bucket_elements": 5_000, "persist_elements": 100, **zeros})
    return Engine(
        tiny_model(seed, sharder(zero, ranks=ranks, precision=precision)),
        ranks=ranks,
        zero=zero,
        optimizer=OptimizerConfig(learning_rate=RATE, clip=clip),
        precision=precision,
        ema_decay=0.99,
    )


def own_samples(step: int, ranks: Ranks) -> tuple[torch.Tensor, torch.Tensor]:
    """A rank's share of samples that depend on the step alone."""
    generator = torch.Generator().manual_seed(1000 + step)
    images = torch.randn(GLOBAL_BATCH, 3, 32, 32, generator=generator)
    labels = torch.randint(0, 5, (GLOBAL_BATCH,), generator=generator)
    share = GLOBAL_BATCH // ranks.world_size
    own = slice(ranks.rank * share, (ranks.rank + 1) * share)
    return images[own], labels[own]


def train(engine: Engine, *, first: int, steps: int, accumulation: int, lr: float = RATE) -> list[float]:
    """Return the global loss of each step."""
    ranks, loss_of, losses = engine.ranks, make_loss("softmax", 0.1), []
    for step in range(first, first + steps):
        parts = [part.chunk(accumulation) for part in own_samples(step, ranks)]
        update = engine.step(
            list(zip(*parts, strict=True)),
            loss_of=lambda model, part: loss_of(model(part[0]), part[1]),
            lr=lr,
        )
        commit_statistics(engine.module, ranks.all_reduce_sum)
        engine.state.update_ema()
        total = update.loss.clone()
        ranks.all_reduce_sum(total)
        losses.append(float(total) / ranks.world_size)
    return losses


def engine_losses(
    stage: int, steps: int, accumulation: int, clip: float = 1.0, precision: str = "fp32", **zeros: Any
) -> list[float]:
    engine = tiny_engine(Ranks.start(), stage=stage, clip=clip, precision=precision, **zeros)
    return train(engine, first=0, steps=steps, accumulation=accumulation)


def sent_in_a_step(stage: int, accumulation: int, precision: str, overlap: bool) -> dict[str, Any]:
    """Count what a step sends."""
    zeros = {"overlap_communication": overlap, "persist_elements": 0}
    engine = tiny_engine(Ranks.start(), stage=stage, precision=precision, **zeros)
    return sent_bytes(engine, lambda step: train(engine, first=step, steps=1, accumulation=accumulation))


def calls_of_a_step(stage: int, accumulation: int) -> dict[str, float]:
    """Count what a step calls around the network, and the tensors and batch norms that it is for."""
    engine = tiny_engine(Ranks.start(), stage=stage, bucket_elements=10_000_000)
    train(engine, first=0, steps=2, accumulation=accumulation)  # what is made once
    found = calls_around(lambda: train(engine, first=2, steps=1, accumulation=accumulation))
    norms = sum(isinstance(one, GroupBatchNorm) for one in engine.module.modules())
    return {**found, "tensors": len(list(engine.module.parameters())), "batch_norms": norms}


def waits_of_a_step(stage: int) -> int:
    """Count how often DeepSpeed lets the host wait for the device, once its clocks run."""
    engine = tiny_engine(Ranks.start(), stage=stage)
    train(engine, first=0, steps=3, accumulation=2)
    accelerator = load_deepspeed().accelerator.get_accelerator()
    with mock.patch.object(type(accelerator), "synchronize") as waits:
        train(engine, first=3, steps=1, accumulation=2)
    return waits.call_count


@contextmanager
def asked_as_on_a_gpu() -> Iterator[None]:
    """Let DeepSpeed's question whether autocast is on, which is CUDA's alone, be answered for this device."""
    answer = torch.is_autocast_enabled
    with mock.patch.object(torch, "is_autocast_enabled", lambda device="cpu": answer(device)):
        yield


def engine_losses_as_on_a_gpu(stage: int, steps: int, accumulation: int, precision: str) -> list[float]:
    """The same where DeepSpeed knows of autocast."""
    with asked_as_on_a_gpu():
        return engine_losses(stage, steps, accumulation, precision=precision)


def ddp_losses(steps: int, clip: float = 1.0) -> list[float]:
    """The same training by torch's own DistributedDataParallel."""
    ranks, loss_of, losses = Ranks.start(), make_loss("softmax", 0.1), []
    model = tiny_model()
    wrapped = DistributedDataParallel(model, broadcast_buffers=False)
    optimizer = torch.optim.AdamW(parameter_groups(model, 0.05), lr=RATE, betas=(0.9, 0.999), eps=1e-8)
    for step in range(steps):
        images, labels = own_samples(step, ranks)
        loss = loss_of(wrapped(images), labels)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), clip)
        optimizer.step()
        commit_statistics(model, ranks.all_reduce_sum)
        total = loss.detach().clone()
        ranks.all_reduce_sum(total)
        losses.append(float(total) / ranks.world_size)
    return losses


def sharded_build(precision: str) -> dict[str, Any]:
    """Build at stage 3: the most elements held at once, and whether they are those of a whole build."""
    ranks = Ranks.start()
    shard = sharder(ZeroConfig(stage=3), ranks=ranks, precision=precision)
    assert shard is not None
    parameters: list[torch.nn.Parameter] = []
    held, largest = [], []

    def placed(module: torch.nn.Module) -> None:
        own = list(module.parameters(recurse=False))
        parameters.extend(own)
        largest.append(sum(one.numel() for one in own))
        held.append(sum(one.numel() for one in parameters))
        shard(module)

    model, whole = tiny_model(placed=placed), tiny_model()
    equal = all(torch.equal(one, other) for one, other in zip(model.buffers(), whole.buffers(), strict=True))
    for sharded, parameter in zip(model.parameters(), whole.parameters(), strict=True):
        with load_deepspeed().zero.GatheredParameters([sharded]):
            equal &= torch.equal(sharded.data, parameter.data.to(sharded.dtype))
    dtypes = {str(one.ds_tensor.dtype) for one in model.parameters()}
    return {"held": max(held), "largest": max(largest), "equal": bool(equal), "dtypes": sorted(dtypes)}


def flattened_build(stage: int, precision: str) -> float:
    """Build 25 million parameters; return the memory taken while they became flat, in models."""
    ranks, status, move, peaks = Ranks.start(), Path("/proc/self/status"), flattening.move, []
    tiny_engine(ranks, stage=stage, precision=precision)  # loads whatever is lazy

    def resident(field: str) -> int:
        return next(int(line.split()[1]) for line in status.read_text().splitlines() if field in line)

    def watched(weights: list[torch.Tensor]) -> torch.Tensor:
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark begins anew
        before, flat = resident("VmRSS"), move(weights)
        peaks.append((resident("VmHWM") - before) * 1024 / flat.nbytes)
        return flat

    with mock.patch.object(flattening, "move", watched):
        model, optimizer = build_model(ModelConfig(image_size=32)), OptimizerConfig(learning_rate=RATE)
        zero = ZeroConfig(stage=stage)
        Engine(model, ranks=ranks, zero=zero, optimizer=optimizer, precision=precision)
    return peaks[0]


def save_after_training(folder: str, stage: int, precision: str = "fp32") -> list[float]:
    """Train three steps, save, and go on for two more."""
    ranks = Ranks.start()
    engine = tiny_engine(ranks, stage=stage, precision=precision)
    train(engine, first=0, steps=3, accumulation=2)
    save(engine, Path(folder))
    return train(engine, first=3, steps=2, accumulation=2)


def go_on(folder: str, stage: int, again: str, precision: str = "fp32") -> list[float]:
    """Load into an engine with other weights, save at once, and go on for two steps."""
    ranks = Ranks.start()
    engine = tiny_engine(ranks, stage=stage, seed=99, precision=precision)
    checkpoint = CheckpointStore(Path(folder), ranks=ranks).newest()
    assert checkpoint is not None
    engine.state.load(checkpoint, applied_steps=3)
    save(engine, Path(again))
    return train(engine, first=3, steps=2, accumulation=2)


def save(engine: Engine, folder: Path) -> None:
    store = CheckpointStore(folder, ranks=engine.ranks)
    store.save(step=3, samples_seen=48, fragments=engine.state.fragments(), facts={}, wait=True)
    store.close()
    engine.ranks.barrier()


def refused_step(stage: int, precision: str, image_factor: float, loss_factor: float) -> dict[str, Any]:
    """Spoil one rank's images or loss in the middle of a run, in the second of four micro-batches."""
    ranks = Ranks.start()
    engine = tiny_engine(ranks, stage=stage, precision=precision)
    train(engine, first=0, steps=2, accumulation=1)
    before = [piece.weight.clone() for piece in engine.state.pieces]
    images, labels = own_samples(2, ranks)
    good, own = (1.0, 1.0), (image_factor, loss_factor) if ranks.rank == ranks.world_size - 1 else (1.0, 1.0)
    update = engine.step(
        list(zip(images.chunk(4), labels.chunk(4), [good, own, good, good], strict=True)),
        loss_of=lambda model, part: make_loss("softmax")(model(part[0] * part[2][0]), part[1]) * part[2][1],
        lr=RATE,
    )
    defer_statistics(engine.module)
    unchanged = all(
        torch.equal(old, piece.weight) for old, piece in zip(before, engine.state.pieces, strict=True)
    )
    after = train(engine, first=3, steps=2, accumulation=1)
    return {
        "applied": update.applied,
        "unchanged": unchanged,
        "norm": str(update.gradient_norm),
        "after": after,
        "applied_steps": engine.state.applied_steps,
    }


def averages(stage: int, precision: str) -> dict[str, Any]:
    """Evaluate weights and EMA; the weights must come back bit-equal, and stay at a rate of zero."""
    ranks = Ranks.start()
    engine = tiny_engine(ranks, stage=stage, precision=precision)
    train(engine, first=0, steps=4, accumulation=1)
    images, _ = own_samples(0, Ranks())
    before = [piece.weight.clone() for piece in engine.state.pieces]
    with engine.evaluating() as forward:
        plain = forward(images)
    with engine.evaluating(ema=True) as forward:
        averaged = forward(images)
        with torch.enable_grad():  # keeps nothing from one pass to the next
            remade = forward(images)
    with engine.evaluating() as forward:
        again = forward(images)
    unchanged = torch.equal(plain, again) and _are_equal(engine, before)
    train(engine, first=4, steps=1, accumulation=1, lr=0.0)
    stayed = _are_equal(engine, before)
    train(engine, first=5, steps=1, accumulation=1)
    return {
        "stayed": stayed and not _are_equal(engine, before),
        "plain": float(plain.double().norm()),
        "averaged": float(averaged.double().norm()),
        "nothing_kept": torch.equal(averaged, remade),
        "applied_steps": engine.state.applied_steps,
        "unchanged": unchanged,
        "told_update": engine.update_norm(lr=RATE),
        "update": _change(engine, before),
    }


def _change(engine: Engine, weights: list[torch.Tensor]) -> float:
    """Return the norm of the difference between all ranks' weights now and before."""
    pairs = zip(weights, engine.state.pieces, strict=True)
    total = sum(((piece.weight - old).double().square().sum() for old, piece in pairs), torch.zeros(()))
    engine.ranks.all_reduce_sum(total)
    return float(total.sqrt())


def _are_equal(engine: Engine, weights: list[torch.Tensor]) -> bool:
    return all(
        torch.equal(old, piece.weight) for old, piece in zip(weights, engine.state.pieces, strict=True)
    )


def tuned_run(arguments: list[str], spare_bytes: int) -> str:
    """Run the worker with the largest micro-batch; alone, rank 1 has only so much memory for activations.

    A limit of the kernel's would be truer, but oneDNN dies of a segmentation fault there.
    """
    lacking = tune._lacking_alone

    def with_little_memory(trainer: Trainer, **options: Any) -> str | None:
        spare = spare_bytes if trainer.engine.ranks.rank == 1 else 1 << 40

        def keep(tensor: torch.Tensor) -> torch.Tensor:
            nonlocal spare
            spare -= tensor.nbytes
            if spare < 0:
                raise torch.OutOfMemoryError("out of memory")
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            return lacking(trainer, **options)

    tune._lacking_alone = with_little_memory
    return failing_run(arguments)


def replay_bundle(folder: str, overrides: tuple[str, ...] = ()) -> dict[str, Any]:
    """Take a run's bad step again."""
    return replay(Path(folder), ranks=Ranks.start(), overrides=overrides)


def failing_run(arguments: list[str], rate: float | None = None) -> str:
    """Run the worker of `coatnet pretrain` to the error that ends it, at a rate that no config may name."""
    if rate is not None:
        LearningRate.__call__ = lambda self, samples_seen: rate  # type: ignore[method-assign]
    try:
        main(arguments)
    except UserError as error:
        return str(error)
    return "finished"


def run_over_copies(arguments: list[str], folders: list[str]) -> str:
    """Run the worker where relative paths lead each rank into a folder of its own: nodes may have copies."""
    os.chdir(folders[int(os.environ["RANK"])])
    return failing_run(arguments)


def flipped_bit(stage: int) -> list[Any]:
    """Flip the lowest bit of one weight on rank 1 and let the ranks compare."""
    ranks = Ranks.start()
    engine = tiny_engine(ranks, stage=stage)
    health = Health(GuardConfig(), ranks=ranks, stage=stage)
    before = health.differing_weights(engine.module)
    if ranks.rank == 1:
        next(iter(engine.module.parameters())).data.view(torch.int32).view(-1)[0] ^= 1
    after = health.differing_weights(engine.module)
    assert after is not None
    return [before, after["ranks"]]


def weigh_classes(folder: str) -> dict[str, Any]:
    """Return what balanced classes weigh, and which shards' indexes this rank has read for it."""
    read, parse = [], corpus.parse_array
    corpus.parse_array = lambda *given, origin, **more: (
        read.append(Path(origin).name) or parse(*given, origin=origin, **more)
    )
    opened = [corpus.Corpus.open(folder)]
    return {"weights": loss_weights(opened, "balanced", ranks=Ranks.start()), "read": read}


def evaluate_on_ranks(request: dict[str, Any]) -> dict[str, Any]:
    """Return what `coatnet evaluate` reports of one resolution."""
    ranks = Ranks.start()
    try:
        return evaluate(EvaluationRequest(**request), ranks=ranks)[0]
    finally:
        ranks.stop()


def finetune_run_as_on_a_gpu(arguments: list[str]) -> str:
    """The same where DeepSpeed knows of autocast."""
    with asked_as_on_a_gpu():
        return finetune_run(arguments)
