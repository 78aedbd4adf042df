"""The demo as a command: progress while it runs, a small table, what was found, and where the page is."""

import os
import sys
import webbrowser
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn, TimeRemainingColumn
from rich.table import Table

from prototile.demo.arms import ARMS
from prototile.demo.experiment import run, settings_for
from prototile.demo.training import Job, Outcome
from prototile.reports.demo import page
from prototile.reports.demo_result import Result
from prototile.reports.demo_words import findings, table, untrained_knn


def main(out: str = "prototile-demo", *, seeds: int = 3, quick: bool = False, open: bool = True) -> Result:
    """Trains on embedded digits for a few minutes and writes a page about it.

    Args:
        out: folder for `index.html` and `result.json`
        seeds: how often each of the four arms is trained
        quick: one seed and fewer steps; shows how it works, its numbers mean little
        open: opens the page in a browser, where there is a screen
    """
    folder = Path(out)
    _check_writable(folder)
    console = Console(highlight=False)
    result = _run(console, seeds=seeds, quick=quick)
    _print(console, result)
    place = folder / "index.html"
    result.write(folder / "result.json")
    place.write_text(page(result), encoding="utf-8")
    console.print(f"\nThe page: {place}   (numbers: {folder / 'result.json'})", soft_wrap=True)
    if open and sys.stdout.isatty() and _has_screen():
        webbrowser.open(place.resolve().as_uri())
    return result


def _check_writable(folder: Path) -> None:
    """Better before minutes of training than afterwards."""
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise ValueError(f"the page cannot be written to {folder}: {error.strerror}; name another folder") from None
    if not os.access(folder, os.W_OK):
        raise ValueError(f"the page cannot be written to {folder}: no permission; name another folder")


def _run(console: Console, *, seeds: int, quick: bool) -> Result:
    count = len(ARMS) * (1 if quick else seeds)
    steps = settings_for(quick=quick).steps
    console.print(f"{count} runs of {steps} steps on 1,300 digits, two at a time. Ctrl-C ends it.")
    columns = (
        TextColumn("[progress.description]{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("steps"),
        TimeElapsedColumn(),
        TextColumn("left:"),
        TimeRemainingColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as bar:
        task = bar.add_task("training", total=count * steps)

        def on_steps(job: Job, done: int) -> None:
            bar.advance(task, done)

        def on_done(job: Job, outcome: Outcome) -> None:
            after = outcome.run.after
            console.print(
                f"  {job.arm.label}, seed {job.seed}: {after.unique} unique, {after.empty:.1%} empty, "
                f"kNN {after.knn:.1%} (untrained {outcome.run.before.knn:.1%}), {outcome.run.seconds:.0f} s"
            )
            for warning in outcome.run.warnings if job.pictures else ():
                console.print(f"    [yellow]the watch, step {warning.step}: {warning.name}:[/] {warning.seen}")

        return run(seeds, quick=quick, on_steps=on_steps, on_done=on_done)


def _print(console: Console, result: Result) -> None:
    k = result.settings.num_prototypes
    summary = Table(title=f"\n{_seeds(result)}, {result.seconds:.0f} seconds", title_justify="left")
    summary.add_column("arm")
    for name in (f"unique of {k}", "empty", "kNN"):
        summary.add_column(name, justify="right")
    for row in table(result):
        summary.add_row(
            row.label,
            row.unique.text(1),
            row.empty.text(1, percent=True),
            row.knn.text(1, percent=True),
        )
    summary.add_row("untrained network", "", "", untrained_knn(result).text(1, percent=True))
    console.print(summary)
    for finding in findings(result):
        figures = "; ".join(f"{name}: {figure}" for name, figure in finding.figures)
        console.print(f"[bold]{finding.question}[/] {finding.answer}. {figures}.\n  {finding.text}")
    if result.quick:
        console.print("[yellow]A quick run: its numbers mean little.[/]")


def _seeds(result: Result) -> str:
    return "One seed" if len(result.seeds) == 1 else f"Mean ± standard deviation of {len(result.seeds)} seeds"


def _has_screen() -> bool:
    """Whether a browser would have a window; one in a terminal is not what is wanted."""
    return sys.platform in ("darwin", "win32") or bool(os.environ.get("DISPLAY") or os.environ.get("WAYLAND_DISPLAY"))
