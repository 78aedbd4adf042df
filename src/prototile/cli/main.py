"""Verbs, errors and exit codes.

0    it is done
1    an audit is below what `--fail-under` asks for
2    a setting, the data or a folder is wrong: nothing was started
3    the numbers of the run broke (`Diverged`): the last checkpoint is sound
128 + n    signal n ended the run after it had written a checkpoint: `--resume` goes on
"""

import argparse
import logging
import sys
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.metadata import version


def main(argv: Sequence[str] | None = None) -> int:
    """Runs a command; gives its exit code."""
    words = list(sys.argv[1:] if argv is None else argv)
    debug = "--debug" in words
    words = [word for word in words if word != "--debug"]
    try:
        return _run(words)
    except KeyboardInterrupt:
        print("interrupted", file=sys.stderr)
        return 130
    except (ValueError, OSError, ModuleNotFoundError) as error:
        if debug:
            raise
        print(f"error: {error}", file=sys.stderr)
        return 2
    except RuntimeError as error:
        code = _code_of(error)
        if debug or code is None:
            raise
        print(f"error: {error}", file=sys.stderr)
        return code


def _run(words: list[str]) -> int:
    verb, *rest = words or ["--help"]
    if verb in ("--help", "-h", "help"):
        print(_usage())
        return 0
    if verb == "--version":
        print(f"prototile {version('prototile')}")
        return 0
    if verb not in VERBS:
        raise ValueError(f"there is no verb {verb!r}: there are {', '.join(VERBS)}")
    return VERBS[verb].run(rest) or 0


def _usage() -> str:
    lines = [f"  prototile {name:11} {verb.about}" for name, verb in VERBS.items()]
    head, tail = (
        "usage: prototile VERB ...",
        "  prototile VERB --help says more, prototile --version which one this is.",
    )
    return "\n".join([head, "", *lines, "", tail])


def _demo(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="prototile demo", description="Trains on embedded digits and shows what came out."
    )
    parser.add_argument("--out", default="prototile-demo", help="folder for index.html and result.json")
    parser.add_argument("--seeds", type=int, default=3, help="how often each arm is trained (3)")
    parser.add_argument("--quick", action="store_true", help="one seed and fewer steps: its numbers mean little")
    parser.add_argument("--no-open", dest="open", action="store_false", help="do not open the page in a browser")
    given = parser.parse_args(words)
    from prototile.demo import main as demo

    demo(given.out, seeds=given.seeds, quick=given.quick, open=given.open)


def _recipes(words: list[str]) -> None:
    parser = argparse.ArgumentParser(
        prog="prototile recipes", description="Lists the ready runs, or prints one of them."
    )
    parser.add_argument("name", nargs="?", help="print this recipe")
    given = parser.parse_args(words)
    from prototile.cli.listing import listing
    from prototile.recipes import read

    print(listing() if given.name is None else read(given.name).text, end="")


def _audit(words: list[str]) -> int:
    from prototile.cli.auditing import command

    with _messages_on_screen():
        return command(words)


def _finetune(words: list[str]) -> int:
    from prototile.cli.finetuning import command
    from prototile.training.checkpointing import Interrupted

    try:
        with _messages_on_screen():
            command(words)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return int(error.code) if isinstance(error.code, int) else 130
    return 0


def _continue(words: list[str]) -> int:
    from prototile.cli.continuing import command
    from prototile.training.checkpointing import Interrupted

    try:
        with _messages_on_screen():
            return command(words)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return int(error.code) if isinstance(error.code, int) else 130


def _evaluate(words: list[str]) -> None:
    from prototile.cli.evaluate_command import command

    with _messages_on_screen():
        command(words)


def _export(words: list[str]) -> None:
    from prototile.cli.exporting import command

    command(words)


def _pretrain(words: list[str]) -> int:
    from prototile.cli import helping
    from prototile.cli.layers import arguments
    from prototile.cli.pretraining import run, settings_of
    from prototile.cli.settings import FLAGS, TEXTS

    if not words or words[0] in ("--help", "-h"):
        print(helping.pretrain_help())
        return 0
    if (asked := _asked(words)) is not None:
        print(helping.part_help(*asked))
        return 0
    recipe, shown, given = None, False, []
    for name, value in arguments(words, FLAGS, TEXTS):
        if name == "recipe":
            recipe = value
        elif name == "print_config":
            shown = bool(value)
        else:
            given.append((name, value))
    settings = settings_of(recipe, given)
    if shown:
        print(settings.yaml(), end="")
        return 0
    from prototile.training.checkpointing import Interrupted

    try:
        with _messages_on_screen():
            done = run(settings)
    except Interrupted as error:
        print(error, file=sys.stderr)
        return int(error.code) if isinstance(error.code, int) else 130
    print(
        f"done: {done.steps:,} steps in {done.seconds:,.0f} seconds; the weights are in {done.model}", file=sys.stderr
    )
    return 0


def _asked(words: list[str]) -> tuple[str, str | None] | None:
    """The part that help is asked on, and its name."""
    for i, word in enumerate(words):
        flag, equals, value = word.partition("=")
        if flag.startswith("--") and flag.endswith(".help"):
            follows = words[i + 1] if i + 1 < len(words) and not words[i + 1].startswith("--") else None
            return flag[2:].removesuffix(".help"), value if equals else follows
    return None


def _code_of(error: RuntimeError) -> int | None:
    """The exit code of an error that users are to read; none of one that is a mistake of the package."""
    from prototile.training.guard import Diverged

    return 3 if isinstance(error, Diverged) else None


class _Screen(logging.Handler):
    """Messages to standard error, whatever that is now: a live bar takes its place."""

    def emit(self, record: logging.LogRecord) -> None:
        mark = "warning: " if record.levelno >= logging.WARNING else ""
        print(f"{mark}{record.getMessage()}", file=sys.stderr, flush=True)


@contextmanager
def _messages_on_screen() -> Iterator[None]:
    """What the package logs is shown while a command runs."""
    package, screen = logging.getLogger("prototile"), _Screen()
    level = package.level
    package.addHandler(screen)
    package.setLevel(logging.INFO)
    try:
        yield
    finally:
        package.removeHandler(screen)
        package.setLevel(level)


@dataclass(frozen=True)
class Verb:
    """What a verb does with the words behind it; it gives an exit code, or none for 0."""

    about: str
    run: Callable[[list[str]], int | None]


VERBS = {
    "demo": Verb("four minutes on two cores: what prototypes do, and a page that shows it", _demo),
    "recipes": Verb("the ready runs; with a name, one of them", _recipes),
    "pretrain": Verb("train a method on any images", _pretrain),
    "continue": Verb("a few epochs more from any checkpoint, with a criterion such as E2MC", _continue),
    "audit": Verb("what the prototypes of any checkpoint are like: a table, and a page", _audit),
    "evaluate": Verb("what the features of any checkpoint are worth, by the papers' protocols", _evaluate),
    "finetune": Verb("train the backbone of any checkpoint on labels, by published recipes", _finetune),
    "export": Verb("the backbone of any checkpoint as one file for others", _export),
}
