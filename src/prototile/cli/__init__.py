"""The command line, and `prototile.pretrain`, which takes the same settings.

main           verbs, errors, exit codes
pretraining    a recipe and what is changed of it -> a run
running        the settings themselves: the signature of `train`; checks; loader, callbacks, `fit`
settings       from layers to objects, by jsonargparse
layers         recipes and command lines as nested settings; what is above wins
kinds          short names
helping        help
"""

from prototile.cli.main import main

__all__ = ["main"]
