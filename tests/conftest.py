"""Options, the GPU marker, processes for one test, and pools of two and four ranks, which start once per session."""

import multiprocessing
import os
import socket
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import jaxtyping
import pytest
import torch

from ranks import RankPool
from started import Started, forks

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before anything imports Triton: its kernels run on the CPU
torch.set_warn_always(True)  # warnings are errors: every one, not only the first
torch.set_num_threads(1)  # the tests' tensors are small: more threads would only wait for each other


def pytest_addoption(parser: pytest.Parser) -> None:
    parser.addoption(
        "--reference",
        type=Path,
        default=Path(__file__).parent / "reference",
        help="directory of reference numbers for tests/parity (*.json beside *.safetensors)",
    )
    parser.addoption("--thorough", action="store_true", help="run tests that take minutes, too")


def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    if not config.getoption("--thorough"):
        long = [item for item in items if item.get_closest_marker("thorough")]
        config.hook.pytest_deselected(items=long)
        items[:] = [item for item in items if item not in long]
    if torch.cuda.is_available():
        return
    for item in items:
        if item.get_closest_marker("gpu"):
            item.add_marker(pytest.mark.skip(reason="no GPU on this machine"))


@pytest.fixture(autouse=True)
def _seeded() -> None:
    torch.manual_seed(0)


@pytest.fixture
def unchecked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Shapes go unchecked, as for users: what they get to see is the package's own error."""
    monkeypatch.setattr(jaxtyping.config, "jaxtyping_disable", True)


@pytest.fixture
def start(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Callable[..., Started]]:
    """Begins `function(*arguments)` in a process of its own, which the test does not leave behind."""
    begun: list[Started] = []

    def start(function: Callable[..., Any], *arguments: Any, **environment: str) -> Started:
        begun.append(Started(tmp_path_factory.mktemp("process"), function, *arguments, environment=environment))
        return begun[-1]

    yield start
    for process in begun:
        process.kill()


@pytest.fixture
def together(start: Callable[..., Started]) -> Callable[..., None]:
    """Runs `function(*arguments)` on two ranks, as torchrun starts them."""

    def together(function: Callable[..., Any], *arguments: Any) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        shared = {"MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(port), "WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2"}
        shared |= {"GROUP_RANK": "0", "TORCHELASTIC_RUN_ID": "test"}
        ranks = [start(function, *arguments, RANK=r, LOCAL_RANK=r, **shared) for r in ("0", "1")]
        assert [rank.wait() for rank in ranks] == [0, 0], "\n".join(rank.stderr for rank in ranks)

    return together


@pytest.fixture
def forked(monkeypatch: pytest.MonkeyPatch) -> None:
    """Processes that the package starts with `multiprocessing` begin with all imported, too."""
    context = forks()
    monkeypatch.setattr(multiprocessing, "get_context", lambda method: context)


@pytest.fixture(scope="session")
def two_ranks() -> Iterator[RankPool]:
    with RankPool(2) as pool:
        yield pool


@pytest.fixture(scope="session")
def four_ranks() -> Iterator[RankPool]:
    with RankPool(4) as pool:
        yield pool
