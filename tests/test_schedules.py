"""Schedules beyond parity: ends, monotony, composition."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from prototile.schedules import Constant, Cosine, EpochRamp, Linear, Product, Progress, Steps


def test_progress():
    progress = Progress(step=7, steps=12, epochs=3)
    assert (progress.epoch, progress.steps_per_epoch, progress.fraction) == (1, 4, 7 / 12)
    for arguments in ((-1, 3), (4, 3), (0, 0)):
        with pytest.raises(ValueError, match="0 <= step <= steps"):
            Progress(*arguments)
    with pytest.raises(ValueError, match="positive number of epochs"):
        Progress(0, 3, epochs=0)


@given(steps=st.integers(1, 200), warmup=st.floats(0, 0.9), base=st.floats(0.1, 2), final=st.floats(0, 0.1))
def test_cosine_rises_then_falls(steps, warmup, base, final):
    values = [Cosine(base, final, warmup_epochs=warmup)(Progress(i, steps)) for i in range(steps + 1)]
    top = values.index(max(values))
    assert values[:top] == sorted(values[:top])
    assert values[top:] == sorted(values[top:], reverse=True)
    assert values[-1] == pytest.approx(final)
    assert max(values) <= base * (1 + 1e-12)


def test_a_warmup_longer_than_the_run():
    values = [Cosine(1.0, 0.0, warmup_epochs=10)(Progress(i, 8, epochs=2)) for i in range(9)]
    assert values == [i / 40 for i in range(9)]


def test_linear_holds_after_its_end():
    schedule = Linear(0.999, 0.9998, until=0.25)
    assert schedule(Progress(0, 100)) == 0.999
    assert schedule(Progress(25, 100)) == pytest.approx(0.9998)
    assert schedule(Progress(99, 100)) == pytest.approx(0.9998)


def test_epoch_ramp_of_no_and_one_epoch():
    assert EpochRamp(0.04, 0.07, 0)(Progress(0, 10, 10)) == 0.07
    assert [EpochRamp(0.04, 0.07, 1)(Progress(i, 3, 3)) for i in range(3)] == [0.04, 0.07, 0.07]


def test_schedules_are_values_and_compose():
    assert Product(Constant(2.0), Linear(0.0, 1.0))(Progress(5, 10)) == 1.0
    assert Cosine(1, 0) == Cosine(1, 0)
    assert len({Cosine(1, 0), Cosine(1, 0)}) == 1


def test_steps_begin_with_their_epochs():
    schedule = Steps(5.0, 0.2, (12, 16))
    values = [schedule(Progress(i, 40, 20)) for i in range(40)]
    assert values == pytest.approx([5.0] * 24 + [1.0] * 8 + [0.2] * 8)
    assert [Steps(1.0, 0.5, (0.5,))(Progress(i, 4, 2)) for i in range(4)] == [1, 1, 0.5, 0.5]
