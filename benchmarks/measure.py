"""How time and memory are measured: contestants of one contest, in turns, in one process."""

import ctypes
import gc
import importlib.metadata
import os
import platform
import statistics
import time
import traceback
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from prototile.assignments import release_scratch

MIB = 2**20
METHOD = {
    "time": (
        "One thread, process CPU time (GPU: events), the least of at least 3 repetitions; every contestant of a case "
        "runs once before any runs again, so that a disturbance of the machine hits all of them alike. Forward, "
        "backward and the gradient of the prototypes, default malloc."
    ),
    "memory": (
        "Peak resident memory of the first call less what was resident before it (GPU: allocated memory), after idle "
        "memory was given back. It includes the gradients; 'beyond dW' is without that of the prototypes. MB are 2^20 "
        "bytes. How the heap was used before can shift it by some tens of MB: malloc keeps what it expects to need."
    ),
    "check": "The value of every contestant's first call is compared with ours (largest deviation / largest number).",
}
LEAST_REPETITIONS, MOST_REPETITIONS = 3, 20


@dataclass(frozen=True)
class Contest:
    """Several ways to compute the same thing. Each is called without arguments and leaves gradients in `leaves`.

    The first contestant that has a value is ours, with which all are compared, unless there is a `reference`.
    """

    contestants: dict[str, Callable[[], Any]]
    leaves: tuple[Tensor, ...] = ()
    gradient_bytes: int = 0  # of the prototypes' gradient
    read: Callable[[Any], Tensor] = lambda value: value.detach().double().reshape(-1)
    reference: Callable[[], Tensor] | None = None
    tolerances: dict[str, float] = field(default_factory=dict)
    compiled: frozenset[str] = frozenset()  # called once before they are measured
    notes: tuple[str, ...] = ()

    def clear(self) -> None:
        for leaf in self.leaves:
            leaf.grad = None


class Meter(ABC):
    """Measures one call on one kind of device."""

    @abstractmethod
    def seconds(self, call: Callable[[], Any]) -> float: ...

    @abstractmethod
    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        """The result, and the bytes in use at the peak beyond those before the call."""


class CPUMeter(Meter):
    """Process time, which other processes disturb least; Linux's high-water mark of resident memory."""

    def __init__(self) -> None:
        self._libc = ctypes.CDLL("libc.so.6")

    def seconds(self, call: Callable[[], Any]) -> float:
        start = time.process_time()
        call()
        return time.process_time() - start

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        release_scratch()
        gc.collect()
        self._libc.malloc_trim(0)  # freed memory that stays resident would hide what the call needs
        Path("/proc/self/clear_refs").write_text("5")  # the high-water mark starts anew
        before = _status_bytes("VmRSS")
        result = call()
        return result, max(0, _status_bytes("VmHWM") - before)


class CUDAMeter(Meter):
    """Events on the stream, and the peak of allocated memory."""

    def seconds(self, call: Callable[[], Any]) -> float:
        start, stop = (torch.cuda.Event(enable_timing=True) for _ in range(2))
        start.record()
        call()
        stop.record()
        torch.cuda.synchronize()
        return start.elapsed_time(stop) / 1e3

    def peak(self, call: Callable[[], Any]) -> tuple[Any, int]:
        gc.collect()
        torch.cuda.synchronize()
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        result = call()
        torch.cuda.synchronize()
        return result, torch.cuda.max_memory_allocated() - before


def meter(device: torch.device) -> Meter:
    return CUDAMeter() if device.type == "cuda" else CPUMeter()


def compare(contest: Contest, meter: Meter, *, limit: float) -> dict[str, dict[str, Any]]:
    """All numbers of every contestant, within about `limit` seconds; of one that fails, what the error was."""
    results: dict[str, dict[str, Any]] = {}
    reference = None if contest.reference is None else contest.reference()
    for name, call in contest.contestants.items():
        contest.clear()
        try:
            results[name], value = _first_call(contest, name, call, meter)
        except Exception as error:  # a rival that fails must not cost the numbers of the others
            traceback.print_exc()
            results[name] = {"error": type(error).__name__}
            continue
        if value is not None:
            reference = value if reference is None else reference
            results[name] |= _agreement(value, reference, contest.tolerances.get(name, 1e-4))
    calls = {name: call for name, call in contest.contestants.items() if "error" not in results[name]}
    for name, seconds in in_turns(calls, meter, limit, contest.clear).items():
        results[name] |= {
            "seconds": min(seconds),
            "median_seconds": statistics.median(seconds),
            "repetitions": len(seconds),
        }
    contest.clear()
    return results


def _first_call(
    contest: Contest, name: str, call: Callable[[], Any], meter: Meter
) -> tuple[dict[str, Any], Tensor | None]:
    if name in contest.compiled:
        call()
        contest.clear()
    result, peak = meter.peak(call)
    numbers = {"peak_mb": peak / MIB, "beyond_dw_mb": (peak - contest.gradient_bytes) / MIB}
    return numbers, None if result is None else contest.read(result)


def _agreement(value: Tensor, reference: Tensor, tolerance: float) -> dict[str, Any]:
    deviation = float((value - reference).abs().max() / reference.abs().max())
    return {"deviation": deviation, "tolerance": tolerance, "agrees": deviation <= tolerance}


def in_turns(
    calls: dict[str, Callable[[], Any]], meter: Meter, limit: float, prepare: Callable[[], Any] = lambda: None
) -> dict[str, list[float]]:
    """The seconds of every call in every round, within about `limit` seconds, or the least number of rounds."""
    seconds: dict[str, list[float]] = {name: [] for name in calls}
    started, rounds = time.perf_counter(), 0
    while calls and rounds < MOST_REPETITIONS:
        for name, call in calls.items():
            prepare()
            seconds[name].append(meter.seconds(call))
        rounds += 1
        if rounds >= LEAST_REPETITIONS and (time.perf_counter() - started) * (rounds + 1) / rounds > limit:
            break
    return seconds


def _status_bytes(key: str) -> int:
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith(f"{key}:"):
            return int(line.split()[1]) * 1024
    raise RuntimeError(f"this system does not tell {key}; memory is measured on Linux only")


# --------------------------------------------------------------------------------------------------- machine
def machine(device: torch.device, packages: tuple[str, ...] = ()) -> dict[str, Any]:
    """What the numbers depend on, these packages included, and nothing that tells whose machine it was."""
    found = {
        "cpu": _cpu_model(),
        "cores": os.cpu_count(),
        "memory_gb": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_before": round(os.getloadavg()[0], 2),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "date": time.strftime("%Y-%m-%d"),
    }
    if device.type == "cuda":
        found["gpu"] = torch.cuda.get_device_name(device)
    return found | {package: _version(package) for package in ("torch", *packages, "lightly", "prototile")}


def _cpu_model() -> str:
    for line in Path("/proc/cpuinfo").read_text().splitlines():
        if line.startswith("model name"):
            return line.split(":", 1)[1].strip()
    return platform.machine()


def _version(package: str) -> str | None:
    try:
        return importlib.metadata.version(package)
    except importlib.metadata.PackageNotFoundError:
        return None
