"""Damaged files by the hundred: each ends in a ValueError, or is imported as what it was."""

import contextlib
import io
import random
import resource
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import save as save_safetensors
from torch import Tensor

from foreign_cases import CASES
from prototile.checkpoints import Imported, load

FILES = (
    ("dino vit", "zip"),
    ("solo-learn swav", "zip"),
    ("ibot swin", "zip"),
    ("dino vit", "legacy"),
    ("msn", "legacy"),
    ("dinov2", "safetensors"),
)
_MEMORY = 300 * 2**20


def written(case: str, kind: str) -> bytes:
    contents = CASES[case][0]()
    if kind == "safetensors":
        return save_safetensors(contents)
    buffer = io.BytesIO()
    torch.save(contents, buffer, _use_new_zipfile_serialization=kind == "zip")
    return buffer.getvalue()


def _flip(data: bytearray, draw: random.Random) -> None:
    for _ in range(draw.choice((1, 1, 2, 20))):
        data[draw.randrange(len(data))] ^= 1 << draw.randrange(8)


def _cut(data: bytearray, draw: random.Random) -> None:
    del data[draw.randrange(len(data)) :]


def _blank(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    stop = min(len(data), start + draw.randrange(1, 2000))
    data[start:stop] = bytes(stop - start)


def _insert(data: bytearray, draw: random.Random) -> None:
    start = draw.randrange(len(data))
    data[start:start] = draw.randbytes(draw.randrange(1, 100))


def _beginning(data: bytearray, draw: random.Random) -> None:
    """Names and shapes stand there."""
    for _ in range(draw.choice((1, 3))):
        data[draw.randrange(min(len(data), 20_000))] = draw.randrange(256)


def _end(data: bytearray, draw: random.Random) -> None:
    """The table of an archive stands there."""
    data[-1 - draw.randrange(min(len(data), 20_000))] = draw.randrange(256)


def _swap(data: bytearray, draw: random.Random) -> None:
    size = draw.randrange(1, 500)
    first, second = (draw.randrange(max(1, len(data) - size)) for _ in range(2))
    data[first : first + size], data[second : second + size] = (
        data[second : second + size],
        data[first : first + size],
    )


DAMAGES: tuple[Callable[[bytearray, random.Random], None], ...] = (
    _flip,
    _cut,
    _blank,
    _insert,
    _beginning,
    _end,
    _swap,
)


def weights(found: Imported) -> dict[str, Tensor]:
    state = {} if found.backbone is None else dict(found.backbone.state_dict())
    for kind, head in found.heads.items():
        state |= {f"{kind}.{name}": x for name, x in head.state_dict().items()}
    return state


def check(folder: Path, case: str, kind: str, count: int, seed: int) -> None:
    draw = random.Random(f"{case} {kind} {seed}")
    whole = written(case, kind)
    (folder / "whole").write_bytes(whole)
    right = weights(load(folder / "whole"))
    memory = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    said: list[str] = []
    for i in range(count):
        data = bytearray(whole)
        DAMAGES[i % len(DAMAGES)](data, draw)
        path = folder / f"{i}"
        path.write_bytes(data)
        began = time.monotonic()
        try:
            found = weights(load(path))
        except ValueError as error:
            said.append(f"{error}"[: len(f"{path}")])
        else:
            assert {name: x.shape for name, x in found.items()} == {name: x.shape for name, x in right.items()}
            if kind == "zip":  # which has a checksum of every record
                assert all(torch.equal(found[name], x) for name, x in right.items())
        assert time.monotonic() - began < 20
        path.unlink()
    assert len(said) > count / 4
    assert all(start.startswith(str(folder)) for start in said)  # which file it was
    assert (resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - memory) * 1024 < _MEMORY


@pytest.mark.parametrize(("case", "kind"), FILES)
def test_damaged_files(tmp_path, case, kind):
    check(tmp_path, case, kind, 35, seed=0)


@pytest.mark.thorough
@pytest.mark.parametrize("seed", range(1, 6))
@pytest.mark.parametrize(("case", "kind"), FILES)
def test_thousands_of_damaged_files(tmp_path, case, kind, seed):
    check(tmp_path, case, kind, 210, seed)


def _mangled(contents: dict, draw: random.Random) -> None:
    """Changes one thing of a network's keys, shapes or types, or of what stands beside it."""
    place = contents
    while True:
        inner = [x for x in place.values() if isinstance(x, dict) and x]
        if not inner or (any(isinstance(x, Tensor) for x in place.values()) and draw.random() < 0.7):
            break
        place = draw.choice(inner)
    name = draw.choice(list(place))
    value = place[name]
    match draw.randrange(9):
        case 0:
            place[f"{name}x"] = place.pop(name)
        case 1:
            del place[name]
        case 2:
            place[name] = "text"
        case 3:
            place[name] = torch.zeros(draw.choice([(0,), (1,), (3, 0), (2, 3, 4, 5), ()]))
        case 4:
            place[name] = torch.zeros(1).expand(10**6, 10**6)
        case 5:
            place[name] = value.to(torch.complex64) if isinstance(value, Tensor) else None
        case 6:
            place[name] = {"inside": value}
        case 7:
            place[7] = value
        case 8:
            place[name] = value.to_sparse() if isinstance(value, Tensor) and value.is_floating_point() else [value] * 3


def mangle(folder: Path, case: str, count: int) -> None:
    for seed in range(count):
        contents = CASES[case][0]()
        _mangled(contents, random.Random(f"{case} {seed}"))
        path = folder / f"{seed}.pth"
        torch.save(contents, path)
        with contextlib.suppress(ValueError):
            load(path)
        path.unlink()


@pytest.mark.parametrize(
    "case", ["dino vit", "esvit swin", "msn", "excb resnet", "mae with its decoder", "lightly swav"]
)
def test_mangled_contents(tmp_path, case):
    mangle(tmp_path, case, 12)


@pytest.mark.thorough
@pytest.mark.parametrize("case", CASES)
def test_thousands_of_mangled_contents(tmp_path, case):
    mangle(tmp_path, case, 100)
