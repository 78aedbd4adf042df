"""Jobs over processes of one thread each: two use two cores better than one process of two threads does.

A worker that dies takes no other with it and leaves nobody waiting: its pipe ends, and that is an error here.
"""

import multiprocessing
import signal
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from multiprocessing.connection import Connection, wait
from multiprocessing.process import BaseProcess
from typing import Any, TypeVar

import torch

J = TypeVar("J")
R = TypeVar("R")
Report = Callable[[int], None]  # of steps done since the last report


@dataclass(frozen=True)
class _Failure:
    text: str


@dataclass(frozen=True)
class _Done:
    result: Any


def run(
    work: Callable[[J, Report], R],
    jobs: Sequence[J],
    *,
    workers: int,
    on_steps: Callable[[J, int], None],
    on_done: Callable[[J, R], None],
) -> list[R]:
    """`work(job, report)` for each job, `workers` at a time; the results in the jobs' order.

    `work` must be importable by name. Whatever ends this call ends the workers too. Without workers all is done in this
    process, with the threads that it has.
    """
    if workers == 0:
        return [_here(work, job, on_steps, on_done) for job in jobs]
    context = multiprocessing.get_context("spawn")
    pool: list[tuple[BaseProcess, Connection]] = []
    try:
        for _ in range(min(workers, len(jobs))):
            here, there = context.Pipe()
            process = context.Process(target=_serve, args=(work, there), daemon=True)
            process.start()
            there.close()
            pool.append((process, here))
        return _hand_out(pool, jobs, on_steps, on_done)
    finally:
        for process, here in pool:
            here.close()
            process.terminate()
        for process, _ in pool:
            process.join()


def _here(
    work: Callable[[J, Report], R], job: J, on_steps: Callable[[J, int], None], on_done: Callable[[J, R], None]
) -> R:
    result = work(job, lambda steps: on_steps(job, steps))
    on_done(job, result)
    return result


def _hand_out(
    pool: list[tuple[BaseProcess, Connection]],
    jobs: Sequence[J],
    on_steps: Callable[[J, int], None],
    on_done: Callable[[J, R], None],
) -> list[R]:
    waiting = list(range(len(jobs)))[::-1]
    results: dict[int, R] = {}
    running: dict[Connection, tuple[BaseProcess, int]] = {}
    for process, pipe in pool:
        running[pipe] = process, waiting.pop()
        _send(pipe, process, jobs[running[pipe][1]])
    while running:
        for pipe in wait(list(running)):
            assert isinstance(pipe, Connection)
            process, index = running[pipe]
            match _received(pipe, process, jobs[index]):
                case _Failure(text):
                    raise RuntimeError(f"{jobs[index]} failed in its process:\n{text}")
                case _Done(result):
                    results[index] = result
                    on_done(jobs[index], result)
                    del running[pipe]
                    if waiting:
                        running[pipe] = process, waiting.pop()
                        _send(pipe, process, jobs[running[pipe][1]])
                case int(steps):
                    on_steps(jobs[index], steps)
    return [results[index] for index in range(len(jobs))]


def _send(pipe: Connection, process: BaseProcess, job: object) -> None:
    try:
        pipe.send(job)
    except (BrokenPipeError, ConnectionResetError):
        raise _ended(process, job) from None


def _received(pipe: Connection, process: BaseProcess, job: object) -> object:
    try:
        return pipe.recv()
    except (EOFError, ConnectionResetError):
        raise _ended(process, job) from None


def _ended(process: BaseProcess, job: object) -> RuntimeError:
    process.join()
    return RuntimeError(
        f"the process that ran {job} ended with exit code {process.exitcode} and without a result: "
        "was it killed, or out of memory? Start again, or with workers=0 to see it happen in this process"
    )


def _serve(work: Callable[[J, Report], Any], pipe: Connection) -> None:
    """Works until the other end is closed. Ctrl-C is the parent's to handle."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    torch.set_num_threads(1)
    torch.set_flush_denormal(True)
    try:
        while True:
            job = pipe.recv()
            try:
                answer = _Done(work(job, pipe.send))
            except (BrokenPipeError, EOFError):
                raise
            except Exception:
                answer = _Failure(traceback.format_exc())
            pipe.send(answer)
    except (BrokenPipeError, EOFError, ConnectionResetError):
        pass
