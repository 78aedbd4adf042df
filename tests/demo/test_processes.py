"""Jobs in processes: order, reports, and every way to end."""

import pytest

from process_cases import work
from prototile.demo import processes


def ran(jobs, workers):
    steps, done = [], []
    results = processes.run(
        work,
        jobs,
        workers=workers,
        on_steps=lambda job, count: steps.append((job, count)),
        on_done=lambda job, result: done.append((job, result)),
    )
    return results, steps, done


@pytest.mark.parametrize("workers", [0, pytest.param(2, marks=pytest.mark.slow)])
def test_results_are_in_order(workers):
    results, steps, done = ran([3, 1, 2], workers)
    assert results == [9, 1, 4]
    assert sorted(steps) == [(job, count) for job in (1, 2, 3) for count in (1, 2)]
    assert sorted(done) == [(1, 1), (2, 4), (3, 9)]


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_failure_shows_where():
    with pytest.raises(RuntimeError, match=r"fail failed in its process:\n(.|\n)*no such job"):
        ran(["fail", "wait"], 2)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_a_worker_that_dies_is_noticed():
    with pytest.raises(RuntimeError, match="the process that ran die ended with exit code -9"):
        ran(["die", "wait"], 2)


@pytest.mark.slow
@pytest.mark.usefixtures("forked")
def test_an_interrupt_ends_the_workers():
    def interrupt(job, count):
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        processes.run(work, [1, "wait"], workers=2, on_steps=interrupt, on_done=lambda job, result: None)
