"""How many operators of torch a step calls: what the time of a small model goes into. Counts; times nothing.

Every call takes the interpreter, autograd and the dispatcher some microseconds, whatever the sizes
(`Hardware.operator_seconds`). The numbers are torch's own, by a dispatch mode around steps; one that makes a
view or an empty tensor counts less. tests/unit/cluster/test_operators.py counts again and holds these to it.
"""

from __future__ import annotations

from dataclasses import dataclass

from coatnet.model.operations import Operation

_VIEW_SHARE = 0.3
_VIEWS = {
    "view", "_unsafe_view", "t", "detach", "slice", "select", "unsqueeze", "squeeze", "transpose", "permute",
    "unbind", "split", "split_with_sizes", "expand", "as_strided", "new_empty", "new_empty_strided", "empty",
    "empty_like", "promote_types",
}  # fmt: skip
# Of a forward and a backward pass, by kind; an addition with its stochastic depth.
_CALLS = {
    "linear": 7.0, "conv": 4.5, "depthwise": 4.5, "attention": 64.0, "se": 13.0,
    "norm": 2.0, "gelu": 2.5, "pool": 6.0, "add": 4.5,
}  # fmt: skip
# A batch norm, with its GELU by the CPU's extension: once, and for every group of images; or torch's.
_ROWS_NORM, _ROWS_GROUP, _PLAIN_GROUP = 11.0, 19.0, 12.0
_COMPILED = 1.5  # a kernel forward and two backward, without dispatcher and autograd
PASS_CALLS = 40.0  # the draws of stochastic depth, the images' transform, the loss
# Of a step's Python outside torch, in calls' time: data, guard, record. Fitted to the quickstart's model.
LOOP_CALLS = 350.0
FORWARD_SHARE = 0.42
# Of a pass's calls, in their time: Python's way through modules and autograd functions between them, which a
# chain of bare layers, as calibration times it, does not show. Fitted to passes of the quickstart's network.
MODULES_SHARE = 0.4
COMMIT_CALLS = 1.2  # of a batch norm, for the statistics on which all ranks agree in every step
_COLLECTIVES = 4  # of every step: the loss, the norm, the statistics, what ranks tell each other


@dataclass(frozen=True)
class Engine:
    """What stands around the network, per tensor of weights.

    Args:
        hooks: in the backward pass of every micro-batch (`every`) or of the last one.
        own_hooks: the same for a tensor of a rank's own part.
        own_norms: of such a tensor, until the host knows the gradients' norm.
        update: after that.
        collectives: of a step, beside those of every engine.
        once: of a step, whatever the number of tensors, until the norm is known.
        python: what the interpreter takes around the hooks, in calls' time. Fitted at one rank.
    """

    hooks: float
    own_hooks: float
    own_norms: float
    update: float
    collectives: int
    every: bool = False
    once: float = 0.0
    python: float = 0.0

    def interpreter(self, tensors: int, *, accumulation: int) -> float:
        """Return what a step's hooks take beside their calls, in calls' time."""
        return self.python * tensors * (accumulation if self.every else 1)

    def until_norm(self, tensors: int, *, accumulation: int, world_size: int) -> float:
        """Return a rank's calls until the gradients' norm is known."""
        own = tensors / world_size
        hooks = self.hooks * tensors + self.own_hooks * own
        return hooks * (accumulation if self.every else 1) + self.own_norms * own + self.once


# By ZeRO's stage; stage 3's own time around layers is `Hardware.sharding_seconds`.
# tests/integration/pretrain/test_engine_calls.py counts on ranks.
_DEEPSPEED = {
    0: Engine(2.3, 0.0, 0.0, 0.1, 1),
    1: Engine(2.9, 2.2, 2.5, 0.4, 2, once=66.0, python=2.2),
    2: Engine(3.5, 1.6, 2.5, 0.4, 2, once=66.0, python=2.2, every=True),
    3: Engine(0.0, 0.0, 0.0, 0.0, 2),
}
_DDP = Engine(1.4, 0.0, 0.0, 0.7, 1)


def weight(operator: str) -> float:
    """Return what a call counts, by the operator's name as the dispatcher has it, "add.Tensor"."""
    return _VIEW_SHARE if operator.partition(".")[0] in _VIEWS else 1.0


def engine_of(stage: int, *, is_ddp: bool) -> Engine:
    """Return what stands around the network at a ZeRO stage, or with torch's own data parallelism."""
    return _DDP if is_ddp else _DEEPSPEED[stage]


def collectives(stage: int, *, is_ddp: bool) -> int:
    """Return how often a step's ranks wait for each other."""
    return _COLLECTIVES + engine_of(stage, is_ddp=is_ddp).collectives


def calls_of(operation: Operation, before: Operation | None) -> dict[str, tuple[float, float]]:
    """Return an operation's calls forward and backward: once, and for every group of images; by kernels.

    Kernels are rows, plain or compiled.
    """
    once = _CALLS[operation.kind]
    rows = plain = (once, 0.0)
    if operation.grouped:
        rows, plain = (_ROWS_NORM, _ROWS_GROUP), (0.0, _PLAIN_GROUP)
    elif operation.kind == "gelu" and before is not None and before.grouped:
        rows = (0.0, 0.0)
    return {"rows": rows, "plain": plain, "compiled": (_COMPILED, 0.0)}
