"""The folder of a run: begun, refused or cleared, and what stands in it beside numbers and weights."""

import contextlib
import json
import logging
import os
import platform
import shutil
import subprocess
import sys
from collections.abc import Iterator, Mapping
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import torch

from prototile.checkpoints.atomic import write_atomically

# All that a run writes, and so all that `overwrite` removes.
WRITTEN = (
    "config.yaml",
    "environment.json",
    "metrics.jsonl",
    "train.log",
    "events.*",
    "checkpoints",
    "model",
    "audit",
    "report.html",
    "audit.json",
    "continued.json",
)
_PACKAGES = ("prototile", "torch", "torchvision", "timm", "lightning", "numpy", "pillow")


def begin(out: Path, *, resume: bool, overwrite: bool, files: Mapping[str, str]) -> None:
    """Makes the folder ready: refuses that of another run unless this one goes on in it or takes its place."""
    found = sorted(path for pattern in WRITTEN for path in out.glob(pattern))
    if found and not (resume or overwrite):
        raise FileExistsError(
            f"there is a run in {out} already ({', '.join(path.name for path in found)}): "
            "resume goes on with it, overwrite removes it, or give another folder"
        )
    if out.exists() and not out.is_dir():
        raise NotADirectoryError(f"{out} is a file: a run needs a folder")
    if overwrite:
        for path in found:
            shutil.rmtree(path) if path.is_dir() and not path.is_symlink() else path.unlink()
    out.mkdir(parents=True, exist_ok=True)
    for name, text in (dict(files) | {"environment.json": json.dumps(environment(), indent=2) + "\n"}).items():
        if Path(name).name != name:
            raise ValueError(f"files lie in the run's folder itself, got the name {name!r}")
        write_atomically(out / name, lambda file, text=text: file.write(text.encode()))


def environment() -> dict[str, Any]:
    """What a run ran on: versions, machine, and the commit of the working directory where that is a checkout."""
    devices = [torch.cuda.get_device_name(i) for i in range(torch.cuda.device_count())]
    return {
        "packages": {name: _version(name) for name in _PACKAGES},
        "python": platform.python_version(),
        "system": f"{platform.system()} {platform.release()}",
        "machine": platform.machine(),
        "cores": os.cpu_count(),
        "threads": torch.get_num_threads(),
        "devices": devices,
        "cuda": torch.version.cuda,
        "command": Path(sys.argv[0]).name,
        "git": _commit(),
    }


@contextlib.contextmanager
def log(path: Path, *, write: bool) -> Iterator[None]:
    """Lets the package's messages go to a file too, on the rank that writes; warnings still reach the terminal."""
    if not write:
        yield
        return
    package = logging.getLogger("prototile")
    handlers: list[logging.Handler] = [logging.FileHandler(path, encoding="utf-8")]
    handlers[0].setFormatter(logging.Formatter("%(asctime)s %(levelname)s %(message)s"))
    if not package.hasHandlers():  # nobody else shows them, and a handler ends Python's own showing
        handlers.append(logging.StreamHandler())
        handlers[-1].setLevel(logging.WARNING)
    level = package.level
    for handler in handlers:
        package.addHandler(handler)
    if package.getEffectiveLevel() > logging.INFO:
        package.setLevel(logging.INFO)
    try:
        yield
    except BaseException as error:
        logging.getLogger(__name__).info("ended by %s: %s", type(error).__name__, error)
        raise
    finally:
        package.setLevel(level)
        for handler in handlers:
            package.removeHandler(handler)
            handler.close()


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        found = subprocess.run(["git", "rev-parse", "HEAD"], capture_output=True, text=True, timeout=5, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return found.stdout.strip()
