"""A pool of processes joined in a gloo group, for running one function on all ranks."""

import multiprocessing
import tempfile
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor

from started import forks


class RankPool:
    """`run(function, *arguments)` calls function(rank, world, *arguments) on every rank and gives their results."""

    def __init__(self, world: int):
        self.world = world

    def __enter__(self) -> "RankPool":
        self._folder = tempfile.TemporaryDirectory()
        rendezvous = (Path(self._folder.name) / "rendezvous").as_uri()
        context = forks()
        self._pipes, self._processes = [], []
        for rank in range(self.world):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(rank, self.world, rendezvous, theirs))
            process.start()
            self._pipes.append(ours)
            self._processes.append(process)
        return self

    def __exit__(self, *_: object) -> None:
        for pipe in self._pipes:
            pipe.send(None)
        for process in self._processes:
            process.join(10)
            process.kill()
        self._folder.cleanup()

    def run(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        for pipe in self._pipes:
            pipe.send((function, arguments))
        answers = []
        for rank, pipe in enumerate(self._pipes):
            if not pipe.poll(120):
                raise TimeoutError(f"rank {rank} did not answer within two minutes")
            answers.append(pipe.recv())
        for rank, (failed, answer) in enumerate(answers):
            if failed:
                raise RuntimeError(f"on rank {rank}:\n{answer}")
        return [answer for _, answer in answers]


def combined(name: str, found: list[Tensor]) -> Tensor:
    """What the ranks' results amount to, by the prefix of their name (see rank_cases and sharded_cases)."""
    kind = name.split(".")[0]
    if kind == "mean":
        return torch.stack(found).mean(0)
    if kind == "rows":
        return torch.cat(found, dim=1) / len(found)
    if kind == "part":
        return torch.cat(found) / len(found)
    if kind == "each":
        return torch.cat(found, dim=1)
    assert kind == "same"
    for other in found[1:]:
        torch.testing.assert_close(other, found[0], rtol=0, atol=0, msg=f"{name} differs between ranks")
    return found[0]


def fail(rank: int, world: int) -> None:
    """What a failure looks like."""
    raise AssertionError(f"rank {rank} of {world} fails")


def _next_task(pipe: Any) -> Any:
    """None at the end, also where the process that sends tasks is gone."""
    try:
        return pipe.recv()
    except EOFError:
        return None


def _serve(rank: int, world: int, rendezvous: str, pipe: Any) -> None:
    torch.set_num_threads(1)
    multiprocessing.set_start_method("fork", force=True)  # for a loader's workers; spawned, they would import all again
    dist.init_process_group("gloo", init_method=rendezvous, rank=rank, world_size=world)
    while (task := _next_task(pipe)) is not None:
        function, arguments = task
        try:
            torch.manual_seed(0)
            pipe.send((False, function(rank, world, *arguments)))
        except Exception:
            pipe.send((True, traceback.format_exc()))
    dist.destroy_process_group()
