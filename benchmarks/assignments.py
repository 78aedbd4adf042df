"""Benchmark of assignments: time, memory and accuracy beside bare products, official-style code and lightly.

    python benchmarks/assignments.py                 everything: about a quarter of an hour
    python benchmarks/assignments.py --quick         tiny sizes, to see that it runs
    python benchmarks/assignments.py --only dino     the cases whose names contain a word
    python benchmarks/assignments.py --report        the tables anew, from the numbers there are

Results go to benchmarks/results; those of a partial or quick run, which are not for keeping, to a temporary folder.
Modules: `measure` the method, `inputs` the data, `rivals`, `tasks` ours beside them, `goals`, `report`, `command`.
"""

from typing import Any

import torch

import command
import goals
import report
from inputs import Case
from measure import METHOD, MIB, Contest, compare, machine, meter
from tasks import TASKS, accuracy

CASES = (
    Case("cross-entropy", 8192, images=256, teacher_views=1, student_views=1),
    Case("cross-entropy", 65536, images=256, teacher_views=1, student_views=1),
    Case("cross-entropy", 8192, images=64, teacher_views=2, student_views=12),
    Case("cross-entropy", 65536, images=32, teacher_views=2, student_views=12),
    Case("cross-entropy", 262144, images=8, teacher_views=2, student_views=12),
    Case("dino", 4096, images=64, teacher_views=2, student_views=12),
    Case("dino", 8192, images=64, teacher_views=2, student_views=12),
    Case("dino", 65536, images=16, teacher_views=2, student_views=12),
    Case("ibot", 8192, images=4, teacher_views=2, student_views=12),
    Case("msn", 8192, images=256, teacher_views=1, student_views=2),
    Case("msn", 65536, images=256, teacher_views=1, student_views=2),
    Case("sinkhorn", 65536, images=512),
    Case("me-max", 65536, images=512),
    Case("swav", 8192, images=256, teacher_views=2, student_views=2),
    Case("swav", 65536, images=256, teacher_views=2, student_views=2),
    Case("koleo", 16384),
    Case("koleo", 65536),
    Case("nearest", 16384),
    Case("nearest", 65536),
)
ACCURACY = Case("accuracy", 4096, images=8, teacher_views=2, student_views=12)
LIMIT = 40.0  # seconds per case, unless the least number of repetitions takes longer


def measure_case(case: Case, device: torch.device, *, quick: bool) -> dict[str, Any]:
    contest = TASKS[case.task](case.reduced() if quick else case, device)
    found = compare(contest, meter(device), limit=1.0 if quick else LIMIT)
    _print_summary(case, contest, found)
    return {
        "task": case.task,
        "dw_mb": contest.gradient_bytes / MIB,
        "notes": contest.notes,
        "contestants": found,
    }


def _print_summary(case: Case, contest: Contest, found: dict[str, dict[str, Any]]) -> None:
    print(f"{case.name}  {'; '.join(contest.notes)}", flush=True)
    for name, result in found.items():
        if "error" in result:
            print(f"  {name:24} failed: {result['error']}")
            continue
        mismatch = "" if result.get("agrees", True) else f"  MISMATCH {result['deviation']:.1e}"
        print(f"  {name:24} {result['seconds']:9.4f} s {result['peak_mb']:8.0f} MB{mismatch}", flush=True)


def warm_up(device: torch.device) -> None:
    """What libraries allocate once belongs to no contestant."""
    x = torch.ones(512, 512, device=device, requires_grad=True)
    (x @ x).softmax(-1).sum().backward()


def run(only: list[str] | None, device: torch.device, *, quick: bool) -> dict[str, Any]:
    """Everything that is measured, as it goes into the JSON file."""

    def wanted(case: Case) -> bool:
        return only is None or any(word in case.name for word in only)

    torch.set_num_threads(1)
    found: dict[str, Any] = {"quick": quick, "device": device.type, "machine": machine(device), "method": METHOD}
    warm_up(device)
    found["cases"] = {case.name: measure_case(case, device, quick=quick) for case in CASES if wanted(case)}
    small = ACCURACY.reduced() if quick else ACCURACY
    found["accuracy"] = accuracy(small, device) if wanted(ACCURACY) else []
    return found | {"goals": goals.assignments(found)}


if __name__ == "__main__":
    command.main(__doc__ or "", "assignments", run, report.assignments)
