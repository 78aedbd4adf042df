"""Processes that begin with what takes seconds to import: one process has imported it, and they are its forks.

They know nothing of this process: neither its modules, nor its checks of shapes. So what a function does in one is what
it does in a fresh interpreter, signals and exit codes included.
"""

import multiprocessing
import os
import runpy
import sys
import time
from collections.abc import Callable
from multiprocessing import forkserver
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import pytest

_IMPORTED = (
    "prototile.backbones",
    "prototile.cli.pretraining",
    "prototile.demo",
    "prototile.methods",
    "prototile.training.run",
    "torch.distributed.fsdp",
)


def forks() -> ForkServerContext:
    """To start processes with, as with other contexts of `multiprocessing`."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(list(_IMPORTED))
    with pytest.MonkeyPatch.context() as patch:
        for name in ("OMP_NUM_THREADS", "TORCHINDUCTOR_COMPILE_THREADS"):
            patch.setenv(name, "1")  # threads do not survive a fork
        forkserver.ensure_running()
    return context


class Started:
    """A function that runs in a process of its own; `folder` takes what it prints."""

    def __init__(self, folder: Path, function: Callable[..., Any], *arguments: Any, environment: dict[str, str]):
        self._files = folder / "stdout", folder / "stderr"
        for file in self._files:
            file.touch()
        call = self._files, environment, function, arguments
        self._process = forks().Process(target=_run, args=call)
        self._process.start()

    @property
    def pid(self) -> int:
        assert self._process.pid is not None
        return self._process.pid

    @property
    def running(self) -> bool:
        return self._process.is_alive()

    @property
    def stdout(self) -> str:
        return self._files[0].read_text()

    @property
    def stderr(self) -> str:
        return self._files[1].read_text()

    def wait_for(self, line: str) -> None:
        """Until it has printed this line."""
        while f"\n{line}\n" not in f"\n{self.stdout}":
            assert self.running, f"it has ended without a line {line!r}:\n{self.stderr}"
            time.sleep(0.002)

    def send_signal(self, signum: int) -> None:
        os.kill(self.pid, signum)

    def kill(self) -> None:
        """As `kill -9` does; where it has ended, nothing."""
        self._process.kill()
        self._process.join()

    def wait(self, timeout: float = 200) -> int:
        """Its exit code, or minus the number of the signal that has ended it."""
        self._process.join(timeout)
        if self._process.exitcode is None:
            raise TimeoutError(f"it has not ended within {timeout} seconds:\n{self.stderr}")
        return self._process.exitcode


def script(path: Path, *words: str) -> None:
    """What `python path words` does."""
    sys.argv = [str(path), *words]
    runpy.run_path(str(path), run_name="__main__")


def _run(
    files: tuple[Path, Path], environment: dict[str, str], function: Callable[..., Any], arguments: tuple[Any, ...]
) -> None:
    for number, file in enumerate(files, start=1):
        with file.open("wb") as opened:
            os.dup2(opened.fileno(), number)
    os.environ.update(environment)
    function(*arguments)
