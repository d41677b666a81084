"""What lands in the account's classes `compile` and `communication`."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
import torch

from coatnet.runtime.account import TimeAccount
from pretrain.assembly import on_compilation
from pretrain.engine.exposed import ExposedCommunication


@pytest.fixture
def account(tmp_path: Path) -> Iterator[TimeAccount]:
    yield TimeAccount(tmp_path, rank=0, life=1)


@pytest.fixture
def callbacks() -> Iterator[None]:
    yield
    # Here, since it takes seconds to import, which collection need not wait for.
    from torch._dynamo.callback import callback_handler

    callback_handler.clear()


@pytest.mark.slow
@pytest.mark.usefixtures("callbacks")
def test_a_compilation_counts_to_compile_and_not_to_the_step_around_it(account: TimeAccount) -> None:
    on_compilation(lambda: account.enter("compile"), account.leave)

    def slow_backend(graph: torch.fx.GraphModule, inputs: list[torch.Tensor]):  # type: ignore[no-untyped-def]
        time.sleep(0.05)
        return graph.forward

    compiled = torch.compile(lambda x: x * 2, backend=slow_backend)
    with account.measure("start"):
        compiled(torch.ones(3))
    after_the_first = account.seconds()["compile"]
    assert after_the_first >= 0.05
    with account.measure("compute"):
        compiled(torch.ones(3))
    assert account.seconds()["compile"] == after_the_first


def test_what_a_step_waits_for_is_communication_whether_called_or_awaited(
    account: TimeAccount, monkeypatch: pytest.MonkeyPatch
) -> None:
    def slow(*_: object, async_op: bool = False) -> object:
        time.sleep(0.0 if async_op else 0.02)
        return SimpleNamespace(wait=lambda: time.sleep(0.02), is_completed=lambda: False)

    backend = SimpleNamespace(all_reduce=slow)
    monkeypatch.setattr("deepspeed.comm.comm.cdb", backend)
    ExposedCommunication(account)
    with account.measure("evaluation"):
        backend.all_reduce(None)
    assert account.seconds()["communication"] == 0.0
    with account.measure("compute"):
        backend.all_reduce(None)
        handle = backend.all_reduce(None, async_op=True)
        assert not handle.is_completed()
        handle.wait()
    assert account.seconds()["communication"] >= 0.04
