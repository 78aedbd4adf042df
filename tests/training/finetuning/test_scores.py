"""Scores: by hand, beside scikit-learn, whatever the batch, over two ranks."""

import math

import numpy as np
import pytest
import torch
from sklearn.metrics import balanced_accuracy_score, top_k_accuracy_score

from evaluation_cases import Pixels, Some
from finetuning_cases import few
from prototile.data import Arrays, Groups
from prototile.evaluation import Crop
from prototile.evaluation.records import append, read
from prototile.training.finetuning import Classifier, FineTuned, Scores, Scoring, score
from prototile.training.finetuning.result import standard_error
from prototile.training.finetuning.scores import scores_of, tallied

NONE = Groups(np.arange(8), np.arange(0), np.arange(0))


def test_beside_scikit_learn():
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(size=(500, 8)), rng.integers(0, 8, 500)
    logits[np.arange(500), labels] += 1
    found = scores_of(tallied(torch.from_numpy(logits), torch.from_numpy(labels)), NONE)
    for k, value in ((1, found.top1), (5, found.top5)):
        assert value == pytest.approx(top_k_accuracy_score(labels, logits, k=k, labels=np.arange(8)))
    assert found.per_class == pytest.approx(balanced_accuracy_score(labels, logits.argmax(1)))
    assert found.head == pytest.approx(found.per_class)
    assert math.isnan(found.middle)
    assert math.isnan(found.tail)
    assert found.images == 500


def test_head_middle_and_tail_by_hand():
    """Four classes of 4, 2, 2 and no test images, of which 3, 1, 2 are right."""
    counts = torch.tensor([[3, 1, 2, 0], [4, 2, 2, 0], [4, 2, 2, 0]])
    found = scores_of(counts, Groups(np.array([0]), np.array([1, 3]), np.array([2])))
    assert (found.head, found.middle, found.tail) == (0.75, 0.5, 1.0)
    assert found.top1 == 6 / 8
    assert found.per_class == 0.75
    assert found.numbers() == {"top1": 0.75, "top5": 1.0, "per_class": 0.75, "head": 0.75, "middle": 0.5, "tail": 1.0}


def test_of_equal_logits_the_first_wins_and_broken_ones_never():
    logits = torch.tensor([[1.0, 1.0, 0.0], [1.0, 1.0, 0.0], [math.nan, 0.0, 9.0]])
    found = tallied(logits, torch.tensor([0, 1, 2]))
    assert found.tolist() == [[1, 0, 0], [1, 1, 0], [1, 1, 1]]


def test_the_batch_does_not_matter_and_the_mode_is_left():
    torch.manual_seed(0)
    classifier = Classifier(Pixels(768), 10, head_std=None)
    found = {score(classifier, few(50), Crop(16), groups(), batch=batch).top1 for batch in (7, 64)}
    assert len(found) == 1
    assert all(part.training for part in classifier.modules())


def test_images_that_cannot_be_read_are_left_out():
    torch.manual_seed(0)
    classifier = Classifier(Pixels(48), 3, head_std=None)
    source = Some([(4, 4)] * 8, bad=(1, 5))
    found = score(classifier, source, Crop(4), groups(3), batch=3)
    assert found.images == 6
    kept = [i for i in range(8) if i not in (1, 5)]
    pixels = np.stack([source.pixels[i] for i in kept])
    same = score(classifier, Arrays(pixels, source.labels[kept]), Crop(4), groups(3))
    assert str(same) == str(found)


def groups(classes: int = 10) -> Groups:
    return Groups(np.arange(classes), np.arange(0), np.arange(0))


def test_scoring_every_so_many_epochs():
    with pytest.raises(ValueError, match="at least every one, got every=0"):
        Scoring(few(2), Crop(16), groups(), every=0)
    scoring = Scoring(few(2), Crop(16), groups())
    scoring.load_state_dict({"history": {3: {**SCORES.as_dict()}}})
    assert str(scoring.latest) == str(SCORES)
    assert scoring.state_dict() == {"history": {3: pytest.approx(SCORES.as_dict(), nan_ok=True)}}


SCORES = Scores(0.5, 0.9, 0.4, math.nan, 0.3, 0.2, 10)


def record(*top1: float) -> FineTuned:
    scores = tuple(Scores(x, 1.0, x, math.nan, x, x, 10) for x in top1)
    seeds = tuple(range(len(top1)))
    chosen = {"lr": 0.1}
    options = {"chosen": chosen, "select_on": "given", "tried": {}, "settings": {}, "train_images": 5}
    return FineTuned("plain", "top1", seeds, scores, classes={}, seconds=1.0, **options)


def test_records_have_means_and_standard_errors():
    found = record(0.1, 0.2, 0.6)
    assert found.value == pytest.approx(0.3)
    assert found.error == pytest.approx(math.sqrt((0.2**2 + 0.1**2 + 0.3**2) / 2 / 3))
    said = found.as_dict()
    assert said["scores"]["top1"] == {"mean": found.value, "error": found.error, "seeds": [0.1, 0.2, 0.6]}
    assert said["scores"]["head"] == {"mean": None, "error": None, "seeds": [None, None, None]}
    assert (said["value"], said["n"], said["seeds"]) == (found.value, 10, [0, 1, 2])
    assert str(found) == "plain: top1 30.00% ± 15.28% (3 seeds) of 10 images; lr 0.1"
    assert record(0.5).as_dict()["error"] is None
    assert math.isnan(standard_error([1.0]))


def test_a_line_of_evaluations(tmp_path):
    found = record(0.1, 0.3)
    line = found.as_record()
    append(tmp_path / "evaluations.jsonl", line)
    (again,) = read(tmp_path / "evaluations.jsonl")
    assert again.as_dict() == line.as_dict()
    assert (again.protocol, again.metric, again.value, again.images) == ("finetune, plain", "top1", found.value, 10)
    assert again.standard_error == pytest.approx(found.error)
    assert (again.selected_on, again.chosen) == ("nothing", ({"lr": 0.1}, {"lr": 0.1}))
    assert again.details["scores"]["top1"]["seeds"] == [0.1, 0.3]
