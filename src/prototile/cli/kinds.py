"""Kinds of settings: by which short names their parts are called, and of which kind are the options of those parts.

`--method dino` is short for `--method prototile.methods.dino`; whatever has a dot is a class or function by its path,
of this package or of any other.
"""

import difflib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import cache


@dataclass(frozen=True)
class Kind:
    """`choices` are paths by short name; without them it is plain settings. `parts` are kinds by option.

    `keeps` are options that stay where another choice takes the place of one; `many` says that it is a list.
    """

    name: str
    choices: Mapping[str, str] = field(default_factory=dict)
    parts: Mapping[str, str] = field(default_factory=dict)
    keeps: tuple[str, ...] = ()
    many: bool = False

    def part(self, option: str) -> "Kind | None":
        """The kind of one of its options, where that is more than a plain value."""
        found = self.parts.get(option, self.parts.get("*"))
        return None if found is None else kinds()[found]

    def path(self, name: str, where: str) -> str:
        """The path that a short name stands for."""
        if "." in name:
            return name
        if name not in self.choices:
            raise ValueError(
                f"{where}: there is no {self.name} {name!r}; there are: {', '.join(near(name, self.choices))}"
            )
        return self.choices[name]


def near(name: str, names: Iterable[str]) -> list[str]:
    """All the names, those that look like this one first."""
    known = list(names)
    first = difflib.get_close_matches(name, known, 3, 0.5)
    return first + [other for other in known if other not in first]


@cache
def kinds() -> dict[str, Kind]:
    """All kinds; their parts are imported when they are first asked for."""
    from prototile import methods
    from prototile.views import PRESETS

    def listed(module: str, names: Iterable[str]) -> dict[str, str]:
        return {name: f"prototile.{module}.{name}" for name in names}

    masks = "SharedDrop", "RandomDrop", "Blocks", "SpreadBlocks", "FixedBlocks"
    schedules = "Constant", "Cosine", "Linear", "EpochRamp", "Product"
    balancers = "Centering", "ProbabilityCentering", "Sinkhorn", "ExplicitBalancing", "Sharpen"
    of_methods = {
        "backbone": "backbone",
        "prior": "prior",
        "target_prior": "prior",
        "balancer": "balancer",
        "add_ons": "add-on",
        "teacher_temperature": "schedule",
        "patch_temperature": "schedule",
        "momentum": "schedule",
    }
    all_kinds = (
        Kind("setting", parts={name: name for name in ("method", "views", "optimization", "long_tail")}),
        Kind("method", listed("methods", methods.METHODS), of_methods, keeps=("backbone",)),
        Kind("backbone", listed("backbones", ("vit", "beit", "swin", "resnet", "timm_model"))),
        Kind("prior", listed("priors", ("Uniform", "PowerLaw", "FromCounts", "Explicit"))),
        Kind("balancer", listed("balancing", balancers)),
        Kind("add-on", listed("methods", methods.ADD_ONS), many=True),
        Kind("schedule", listed("schedules", schedules), {"first": "schedule", "second": "schedule"}),
        Kind(
            "views",
            listed("views.presets", PRESETS) | {"small": "prototile.views.small"},
            {"augmentation": "views", "masks": "masks"},
        ),
        Kind("masks", listed("views.masks", masks)),
        Kind("long_tail", listed("data", ("Exponential", "Power", "Step"))),
        Kind("optimization", parts={"lr": "schedule", "weight_decay": "schedule", "roles": "roles"}),
        Kind("roles", parts={"*": "role"}),
        Kind("role", parts={"lr": "schedule", "weight_decay": "schedule", "decay_factor": "schedule"}),
    )
    return {kind.name: kind for kind in all_kinds}
