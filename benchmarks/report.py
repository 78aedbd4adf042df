"""A run as readable tables (Markdown), and as files.

save                                           both files
assignments, fused, views, loader,             the text of each benchmark
training, audit, evaluation
introduction                                   what every text begins with
table                                          rows of cells
"""

import json
import os
from collections.abc import Iterable, Iterator
from itertools import chain, groupby
from pathlib import Path
from typing import Any

TITLES = {
    "cross-entropy": "Cross-entropy of assignments",
    "dino": "DINO: centring and cross-entropy",
    "ibot": "iBOT: class tokens and masked patches",
    "msn": "MSN: cross-entropy and ME-MAX",
    "sinkhorn": "Sinkhorn, 3 iterations, with its logits",
    "me-max": "ME-MAX alone",
    "swav": "SwAV",
    "koleo": "KoLeo of all prototypes",
    "nearest": "Nearest neighbours of all prototypes",
}


def save(run: dict[str, Any], text: str, folder: Path, stem: str) -> None:
    """Both files, each complete or not at all."""
    folder.mkdir(parents=True, exist_ok=True)
    _replace(folder / f"{stem}.json", json.dumps(run, indent=1) + "\n")
    _replace(folder / f"{stem}.md", text)


def _replace(path: Path, text: str) -> None:
    unfinished = path.with_name(f".{path.name}.{os.getpid()}")
    unfinished.write_text(text)
    unfinished.replace(path)


def assignments(run: dict[str, Any]) -> str:
    parts = _introduction("Assignments", run), _goals(run["goals"]), _cases(run["cases"]), _accuracy(run["accuracy"])
    return "\n".join(chain(*parts))


def views(run: dict[str, Any]) -> str:
    parts = _introduction("Views", run), _goals(run["goals"]), _rates(run["cases"]), _about(run["about"])
    return "\n".join(chain(*parts))


def training(run: dict[str, Any]) -> str:
    parts = _introduction("Training", run), _goals(run["goals"]), _trained(run["cases"]), _about(run["about"])
    return "\n".join(chain(*parts))


def loader(run: dict[str, Any]) -> str:
    header = ("data", "images", "classes", "views", "seen", "bad", "mean", "std", "images / s")
    return "\n".join(chain(_introduction("Loader", run), table(header, (_data(*each) for each in run["data"].items()))))


def learning(run: dict[str, Any], header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> str:
    return "\n".join(chain(_introduction("Learning", run), table(header, rows), _goals(run["goals"])))


def audit(run: dict[str, Any], tables: Iterable[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]) -> str:
    return _titled("Audit", run, tables)


def evaluation(run: dict[str, Any], tables: Iterable[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]) -> str:
    return _titled("Evaluation", run, tables)


def fused(run: dict[str, Any], tables: Iterable[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]) -> str:
    return _titled("Fused", run, tables)


def _titled(
    title: str, run: dict[str, Any], tables: Iterable[tuple[str, tuple[str, ...], Iterable[tuple[str, ...]]]]
) -> str:
    parts = [_introduction(title, run), _goals(run["goals"])]
    parts += [chain((f"## {title}\n",), table(header, rows)) for title, header, rows in tables]
    return "\n".join(chain(*parts))


def _introduction(title: str, run: dict[str, Any]) -> Iterator[str]:
    yield f"# {title}, measured on the {run['device'].upper()}\n"
    yield f"Written by `benchmarks/{title.lower()}.py` from the JSON file beside it.\n"
    if run["quick"]:
        yield "**A quick run: sizes are a fraction of those named, and no number here means anything.**\n"
    yield from (f"* {name}: {value}" for name, value in run["machine"].items())
    yield ""
    yield from (f"{text}\n" for text in run["method"].values())


def _goals(goals: list[dict[str, Any]]) -> Iterator[str]:
    if not goals:
        return
    met = sum(goal["met"] is True for goal in goals)
    yield f"## Goals: {met} of {len(goals)} met\n"
    words = {True: "yes", False: "**no**", None: "not measured"}
    rows = ((g["goal"], f"{g['relation']} {g['bound']:g}", _number(g["value"]), words[g["met"]]) for g in goals)
    yield from table(("goal", "wanted", "value", "met"), rows)


def _data(name: str, x: dict[str, Any]) -> tuple[str, ...]:
    counts = f"{x['images']:,}", str(x["classes"] or ""), x["views"], f"{x['seen']:,}", str(len(x["bad"]))
    return name, *counts, f"{x['mean']:.3f}", f"{x['std']:.3f}", f"{x['images_per_second']:,.0f}"


def _cases(cases: dict[str, Any]) -> Iterator[str]:
    for task, group in groupby(cases.items(), key=lambda item: item[1]["task"]):
        yield f"## {TITLES.get(task, task)}\n"
        for name, case in group:
            notes = "".join(f"; {note}" for note in case["notes"])
            yield f"**{name}** (dW {case['dw_mb']:.0f} MB{notes})\n"
            header = ("contestant", "time, s", "/ GEMM", "/ ours", "peak, MB", "beyond dW, MB", "deviation")
            yield from table(header, _contestants(case["contestants"]))


def _contestants(contestants: dict[str, Any]) -> Iterator[tuple[str, ...]]:
    gemm, ours = (contestants.get(name, {}).get("seconds") for name in ("gemm", "default"))
    for name, result in contestants.items():
        if "error" in result:
            yield name, f"failed: {result['error']}", "", "", "", "", ""
            continue
        seconds = result["seconds"]
        ratios = (_number(seconds / other if other else None) for other in (gemm, ours))
        memory = f"{result['peak_mb']:.0f}", f"{result['beyond_dw_mb']:.0f}"
        yield name, _number(seconds), *ratios, *memory, _deviation(result)


def _deviation(result: dict[str, Any]) -> str:
    if "deviation" not in result:
        return ""
    return f"{result['deviation']:.1e}" + ("" if result["agrees"] else " **mismatch**")


def _accuracy(rows: list[dict[str, Any]]) -> Iterator[str]:
    if not rows:
        return
    yield "## Accuracy: relative errors against the naive formula in float64\n"
    columns = ("data", "contestant", "dtype", "loss", "dz", "dw")
    cells = (tuple(_cell(row[column]) for column in columns) for row in rows)
    yield from table(("data", "contestant", "dtype", "loss", "dz", "dW"), cells)


def _rates(cases: dict[str, Any]) -> Iterator[str]:
    for name, case in cases.items():
        yield f"## {name}\n"
        yield f"{case['note']}\n"
        rival = case["contestants"].get("lightly", {}).get("images_per_second")
        yield from table(
            ("contestant", "images / s", "over the rounds", "ms / image", "/ lightly"),
            (_rate(name, result, rival) for name, result in case["contestants"].items()),
        )


def _rate(name: str, result: dict[str, Any], rival: float | None) -> tuple[str, ...]:
    if "error" in result:
        return name, f"failed: {result['error']}", "", "", ""
    rate = result["images_per_second"]
    spread = " - ".join(_number(bound(result["rounds"])) for bound in (min, max))
    return name, _number(rate), spread, _number(1e3 / rate), _number(rate / rival if rival else None)


def _trained(cases: dict[str, Any]) -> Iterator[str]:
    for name, case in cases.items():
        found = case["contestants"]
        good = {contestant: result for contestant, result in found.items() if "error" not in result}
        rival = good.get("lightly", {}).get("images_per_second")
        yield f"## {name}\n"
        yield f"{case['note']}\n"
        header = ("contestant", "images / s", "over the rounds", "ms / image", "/ lightly", "waiting", "CPU ms / image")
        rows = (
            (*_rate(x, result, rival), _percent(result.get("waiting")), _milliseconds(result.get("cpu_seconds")))
            for x, result in found.items()
        )
        yield from table(header, rows)
        parts = {contestant: result["parts"] for contestant, result in good.items() if "parts" in result}
        for columns in list(parts.values())[:1]:
            header = ("where the time goes, without workers", *columns)
            yield from table(header, ((x, *map(_percent, shares.values())) for x, shares in parts.items()))
        header = ("the same work", "trained parameters", "tokens / image, student", "teacher", "first loss")
        yield from table(header, (_work(x, result) for x, result in good.items() if "parameters" in result))


def _work(name: str, result: dict[str, Any]) -> tuple[str, ...]:
    tokens = f"{result['student_tokens']:,.0f}", f"{result['teacher_tokens']:,.0f}"
    return name, f"{result['parameters']:,}", *tokens, f"{result['first_loss']:.4f}"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{share:.1%}"


def _milliseconds(seconds: float | None) -> str:
    return _number(None if seconds is None else 1e3 * seconds)


def _about(contestants: dict[str, str]) -> Iterator[str]:
    yield "## The contestants\n"
    yield from (f"* **{name}**: {text}" for name, text in contestants.items())
    yield ""


def _cell(value: str | float) -> str:
    return value if isinstance(value, str) else f"{value:.1e}"


def _number(value: float | None) -> str:
    """Three digits, without an exponent where a reader can do without."""
    if value is None:
        return ""
    return f"{value:.1e}" if 0 < abs(value) < 1e-3 else f"{value:.3g}" if abs(value) < 1000 else f"{value:.0f}"


def table(header: tuple[str, ...], rows: Iterable[tuple[str, ...]]) -> Iterator[str]:
    for cells in (header, ("---",) * len(header), *rows):
        yield f"| {' | '.join(cells)} |"
    yield ""
