"""Help: what there is to set, in groups, with defaults; and what a method, backbone or augmentation takes."""

import inspect
import re
import textwrap
from collections.abc import Callable
from typing import Any

from prototile.cli.kinds import Kind, kinds, near
from prototile.cli.running import train
from prototile.cli.settings import Option, found, options
from prototile.training.optimization import Optimization, Special

_WIDTH = 100
_GROUPS = {
    "What to train on": "data split download long_tail tail_seed classes_per_batch class_power workers bad_share",
    "What to train": "method views optimization epochs batch accumulate seed",
    "Where and how": (
        "out resume overwrite accelerator devices nodes strategy precision sync_batch_norm compile limit_steps "
        "checkpoint_minutes checkpoint_steps"
    ),
    "What to watch": (
        "monitor_every audit_every print_every probe_every probe_data probe_split probe_limit tensorboard wandb"
    ),
}
_USAGE = """\
usage: prototile pretrain --recipe NAME [--data DATA] --out FOLDER [--setting VALUE ...]

Trains a method and leaves a run in a folder.

  prototile pretrain --recipe digits-dino --out runs/digits
  prototile pretrain --recipe dino-vits16 --data classes:imagenet/train --out runs/dino --devices 8
  prototile pretrain --recipe runs/digits/config.yaml --out runs/more --method.num_prototypes 512
  prototile pretrain --recipe cifar10-dino --data cifar10:data --out runs/prior \\
      --method.prior PowerLaw --method.prior.exponent 0.25 --method.add_ons koleo_proto

  --recipe              a name from `prototile recipes`, or a YAML file; settings change what it says
  --print_config        print all settings as a recipe, and train nothing
  --method.help dino    the options of a method; likewise --method.backbone.help vit, --views.help msn,
                        --method.prior.help, --optimization.help ...
  --debug               show where an error comes from

Options of a part are named with dots, and values are YAML; --flag alone is true, --no_flag false."""


def pretrain_help() -> str:
    """The help of `prototile pretrain`."""
    known, described = options(train), _described(train)
    parts = [_USAGE]
    for title, names in _GROUPS.items():
        lines = [_line(f"--{name}", described[name], _default(known[name], name)) for name in names.split()]
        parts.append("\n".join([f"{title}:", *lines]))
    return "\n\n".join(parts)


def part_help(path: str, name: str | None) -> str:
    """The help of a part: of what is chosen by `name`, or what there is to choose from."""
    kind = kinds()["setting"]
    for part in path.split("."):
        inner = kind.part(part)
        if inner is None:
            raise ValueError(
                f"--{path}.help: there is no help on {part!r}; there is on: {', '.join(near(part, kind.parts))}"
            )
        kind = inner
    if kind.name in ("optimization", "role"):
        return _options_help(Optimization if kind.name == "optimization" else Special, path)
    if kind.name == "roles":
        return f"--{path}.ROLE: what is special about a part of a method (prototypes, predictor)\n\n" + _options_help(
            Special, f"{path}.ROLE"
        )
    if name is None:
        return _choices_help(kind, path)
    return _options_help(found(kind.path(name, f"--{path}.help"), f"--{path}.help"), path)


def _choices_help(kind: Kind, path: str) -> str:
    lines = [_line(name, _first_line(found(place, path)), "") for name, place in kind.choices.items()]
    return "\n".join(
        [f"--{path} is one of these, or any other by its full path:", *lines, f"--{path}.help NAME says more"]
    )


def _options_help(call: Callable[..., Any], path: str) -> str:
    lines = [_line(f"--{path}.{option.name}", "", _default(option, option.name)) for option in options(call).values()]
    text = inspect.cleandoc(call.__doc__ or "")
    return "\n".join([f"{call.__name__}: {text}", "", *(lines or ["It has no options."])])


def _default(option: Option, name: str) -> str:
    choices = f" {option.choices}" if option.choices and option.choices != "{true,false}" else ""
    if option.required or name == "optimization":
        return f"(required){choices}"
    return f"({_shown(option.default)}){choices}"


def _shown(value: Any) -> str:
    """A default as one would write it."""
    if isinstance(value, dict) and "class_path" in value:
        args = ", ".join(f"{name}={_shown(each)}" for name, each in (value.get("init_args") or {}).items())
        return value["class_path"].rpartition(".")[2] + (f": {args}" if args else "")
    if isinstance(value, list | tuple):
        return "[" + ", ".join(_shown(each) for each in value) + "]"
    return {None: "null", True: "true", False: "false"}.get(value, str(value)) if not isinstance(value, dict) else "{}"


def _line(name: str, text: str, default: str) -> str:
    said = " ".join(filter(None, [text, default]))
    gap = " " * 24
    body = textwrap.fill(said, _WIDTH, initial_indent=gap, subsequent_indent=gap)
    head = f"  {name}"
    return head + body[len(head) :] if len(head) < len(gap) - 1 else f"{head}\n{body}"


def _described(call: Callable[..., Any]) -> dict[str, str]:
    """What a docstring's `Args:` say of each."""
    return dict(re.findall(r"^    (\w+): (.*)$", inspect.cleandoc(call.__doc__ or ""), re.MULTILINE))


def _first_line(call: Callable[..., Any]) -> str:
    return inspect.cleandoc(call.__doc__ or "").partition("\n")[0]
