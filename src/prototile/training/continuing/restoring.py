"""From a checkpoint, of any project that is known, to the method that goes on from it.

    restore(path)     `Restored`: the method with all that the file holds, and what was rebuilt or guessed, in words
    settle_(method)   its schedules stand where training left them

A run of this package that says how its method was made is built like that, and its whole state is put back. Any other
file gives a network; the method around it is that of its project, or the one that is asked for. Where a file has a
student and a teacher, each gets its own weights; a network alone becomes both.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor, nn

from prototile.checkpoints import Imported, load, native, own
from prototile.checkpoints.reading import read
from prototile.methods import METHODS, Method, Prototypical
from prototile.methods.objectives import ClassTokens
from prototile.schedules import Constant, Progress
from prototile.training.continuing.assembling import as_made_, assembled
from prototile.training.continuing.described import build, optimization_of
from prototile.training.continuing.recognising import method_of, method_told
from prototile.training.optimization import Optimization
from prototile.views import Augmentation

CONTINUED = tuple(name for name in METHODS if name not in ("mae", "data2vec"))
_LONG = 1000.0  # epochs after which every published ramp has ended


@dataclass(frozen=True, eq=False)
class Restored:
    """A method as a checkpoint left it. `rebuilt` are the parts that the file lacks; they are at random still."""

    method: Method
    name: str  # of `METHODS`
    layout: str
    network: str  # which of those in the file
    rebuilt: tuple[str, ...]
    said: tuple[str, ...]  # what was not as it should be, and what was done about it
    described: Mapping[str, Any]  # the method, as a run's config has it
    optimization: Optimization | None = None  # the run's own
    optimizer: Mapping[str, Any] | None = field(default=None, repr=False)  # the state that the file has
    views: Augmentation | None = None  # the run's own, as they ended
    described_views: Mapping[str, Any] | None = None
    epochs: float = _LONG  # that it was trained for
    continued: bool = False  # whether it is a continued run itself


def restore(
    path: str | Path, *, method: str | None = None, options: Mapping[str, Any] | None = None, seed: int = 0
) -> Restored:
    """The method of a checkpoint, with what the file holds. `method` is for files that do not tell theirs, or for
    another one; `options` are its own, such as "num_prototypes" for prototypes that the file lacks.
    """
    if method is not None and method not in CONTINUED:
        raise ValueError(f"there is no method {method!r} to go on with; there are: {', '.join(CONTINUED)}")
    path, options = Path(path), dict(options or {})
    found = load(path)
    if found.backbone is None:
        raise ValueError(f"{path} ({found.layout}) holds no backbone that can be built here: nothing to go on with")
    contents = _contents(path)
    settings = _settings(contents)
    told = found.layout == "prototile" and method is None and not options
    if told and settings is not None and (whole := _whole(found, contents, settings)) is not None:
        return whole
    student, teacher = _pair(path, found)
    name, guess = (method, None) if method is not None else method_of(student, teacher)
    if name not in CONTINUED:
        raise ValueError(f"{name} has no projector to spread, so it cannot be continued: give another method")
    if found.layout == "prototile" and method_told(found) is None:
        for file in filter(None, (student, teacher)):
            as_made_(file, name)
    made = assembled(name, student, teacher, options, _state(contents), seed=seed)
    restored = Restored(
        method=made.method,
        name=name,
        layout=found.layout,
        network=_which(student, teacher),
        rebuilt=made.rebuilt,
        said=(*([] if guess is None else [guess]), *made.said),
        described=made.described,
        optimizer=_optimizer(contents),
        **_of_settings(settings),
    )
    settle_(restored.method, restored.epochs)
    return restored


def settle_(method: Method, epochs: float = _LONG) -> None:
    """Schedules become constant: the teacher's temperature as it ended, its momentum as it began, as one that has
    reached 1 would not let the teacher follow. Queues fill from the first epoch on.
    """
    if not isinstance(method, Prototypical):
        return
    begin, end = Progress(0, 1000, epochs), Progress(1000, 1000, epochs)
    if method.momentum is not None:
        method.momentum = Constant(method.momentum(begin))
    for objective in method.objectives:
        temperatures: Any = objective.temperatures
        objective.temperatures = replace(temperatures, teacher=Constant(temperatures.teacher(end)))
        if isinstance(objective, ClassTokens):
            objective.queue_from = 0


def _whole(found: Imported, contents: Mapping[str, Any], settings: Mapping[str, Any]) -> Restored | None:
    """A run that says how its method was made, with all of its state; None where it does not."""
    config = settings.get("config") or {}
    described = config.get("method")
    if not isinstance(described, Mapping) or not isinstance(described.get("class_path"), str):
        return None
    name = described["class_path"].rpartition(".")[2]
    arguments = dict(described.get("init_args") or {})
    if name not in CONTINUED or described["class_path"] != f"prototile.methods.{name}":
        return None
    if not isinstance(arguments.get("backbone"), Mapping):
        return None
    backbone = native.build(arguments.pop("backbone"))
    method = METHODS[name](backbone, **{option: build(value) for option, value in arguments.items()})
    state = _state(contents)
    left = [key for key in state if not key.startswith("add_ons.")]
    mine = method.state_dict()
    if set(left) != {key for key in mine if not key.startswith("add_ons.")} or any(
        mine[key].shape != x.shape for key, x in state.items() if key in mine
    ):
        return None
    method.load_state_dict({**mine, **{key: x for key, x in state.items() if key in mine}})
    told = _of_settings(settings)
    settle_(method, told["epochs"])
    return Restored(
        method=method,
        name=name,
        layout=found.layout,
        network="student and teacher" if len(method.backbones) > 1 else "only",
        rebuilt=(),
        said=(),
        described=described,
        optimizer=_optimizer(contents),
        **told,
    )


def _pair(path: Path, found: Imported) -> tuple[Imported, Imported | None]:
    """The student and the teacher of a file; what it has one of is the student."""
    kind = found.network.split(":")[0]
    if kind == "only":
        return found, None
    try:
        other = load(path, network="student" if kind == "teacher" else "teacher")
    except ValueError:
        return found, None
    if other.backbone is None:
        return found, None
    return (other, found) if kind == "teacher" else (found, other)


def _which(student: Imported, teacher: Imported | None) -> str:
    return student.network.split(":")[0] if teacher is None else "student and teacher"


def _contents(path: Path) -> Mapping[str, Any]:
    """The file itself, for what is no network: state of the optimiser, settings; not of a fine-tuned run's."""
    file = own.file_of(path) if path.is_dir() else path
    if file is None or own.looks_exported(file):
        return {}
    contents = read(file)
    return {} if own.is_finetuned(contents) else contents


def _settings(contents: Mapping[str, Any]) -> Mapping[str, Any] | None:
    if not own.is_own(contents):
        return None
    settings = contents["prototile"].get("settings")
    return settings if isinstance(settings, Mapping) else None


def _of_settings(settings: Mapping[str, Any] | None) -> dict[str, Any]:
    """What a run says of how it was trained."""
    if settings is None:
        return {"epochs": _LONG}
    config = settings.get("config") or {}
    views = config.get("views")
    found: dict[str, Any] = {"epochs": float(settings.get("epochs", _LONG)), "continued": "continued" in config}
    if isinstance(settings.get("optimization"), Mapping):
        found["optimization"] = optimization_of(settings["optimization"])
    if isinstance(views, Mapping):
        try:
            built = build(views)
        except (TypeError, ValueError):  # views of the user's own
            return found
        if isinstance(built, Augmentation):
            found |= {"views": built.at(Progress(1000, 1000, found["epochs"])), "described_views": views}
    return found


def _state(contents: Mapping[str, Any]) -> dict[str, Tensor]:
    """The state of a run's method, by our names; none of another project's file."""
    if not own.is_own(contents):
        return {}
    state = contents["state_dict"]
    return {name.removeprefix("method."): x for name, x in state.items() if name.startswith("method.")}


def _optimizer(contents: Mapping[str, Any]) -> Mapping[str, Any] | None:
    """The state of the optimiser, wherever projects keep it."""
    listed = contents.get("optimizer_states")
    found = listed[0] if isinstance(listed, list) and len(listed) == 1 else contents.get("optimizer")
    return found if isinstance(found, Mapping) and isinstance(found.get("state"), Mapping) and found["state"] else None


def parts_of(method: Method) -> dict[str, nn.Module]:
    """The parts of what is evaluated: backbone and projector of the teacher, where there is one."""
    network: Any = method.student
    if isinstance(method, Prototypical):
        network = method.student if method.teacher is None else method.teacher
        return {"backbone": network.backbone, "projector": network.head.projector}
    return {"backbone": network.backbone, "projector": network.projector}
