"""Fine-tuning: a checkpoint's backbone and a linear head, trained on labels.

    running      `finetune`: learning rates, seeds, runs on disk, a record
    recipe       published recipes, as data; `recipe(name)`
    classifier   Classifier, the method that is trained
    mixing       RandAugment, random erasing, mixup and cutmix
    scores       top-1, top-5, means of classes, head, middle and tail
    result       FineTuned, the record

A classifier is one more method for `prototile.training.fit`: what holds for runs holds here.
"""

from prototile.training.finetuning.classifier import Classifier, first_layer, soft_cross_entropy
from prototile.training.finetuning.mixing import Mixing, RandAugment
from prototile.training.finetuning.recipe import RECIPES, Recipe, recipe
from prototile.training.finetuning.result import FineTuned
from prototile.training.finetuning.running import finetune
from prototile.training.finetuning.scores import Scores, Scoring, score

__all__ = [
    "RECIPES",
    "Classifier",
    "FineTuned",
    "Mixing",
    "RandAugment",
    "Recipe",
    "Scores",
    "Scoring",
    "finetune",
    "first_layer",
    "recipe",
    "score",
    "soft_cross_entropy",
]
