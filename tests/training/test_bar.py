"""Progress: plain lines, a live bar, and what they say."""

import io
import re
from types import SimpleNamespace

import pytest
from rich.console import Console

from prototile.data.loader import Waiting
from prototile.training import bar as module
from prototile.training import speed
from prototile.training.bar import Bar
from prototile.training.monitor import Monitor
from prototile.training.probe import Probe
from prototile.training.speed import Speed
from training_cases import SIDE
from watched import run, source


def test_plain_lines_every_so_many_steps(tmp_path, capsys):
    monitor, probe = Monitor(1), Probe(source(60), size=SIDE, with_linear=False, ks=(3,))
    run(tmp_path, callbacks=[monitor, probe, Bar(monitor, probe, every=3)], epochs=2)
    said = capsys.readouterr().err.splitlines()
    assert [re.match(r"step (\d+) of 8, epoch (\d)", line).groups() for line in said] == [
        ("3", "1"),
        ("6", "2"),
        ("8", "2"),
    ]
    for line in said:
        assert re.search(r"loss \d+\.\d{4}, [\d,]+ images/s, \d+% waiting for data, 100% of prototypes used", line)
    assert "kNN" not in said[0], "not measured yet"
    assert re.search(r"kNN \d+\.\d% \(untrained: kNN \d+\.\d%\)", said[1])
    assert said[-1].endswith("0:00:00 left")
    assert re.search(r"\d:\d\d:\d\d left", said[0])


def test_alone_it_says_less(tmp_path, capsys):
    run(tmp_path, callbacks=[Bar(every=4)], epochs=1)
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("step 4 of 4")
    assert "prototypes" not in line


@pytest.mark.parametrize("fails", [False, True])
def test_a_live_bar_on_a_terminal(tmp_path, monkeypatch, fails):
    screen = io.StringIO()
    monkeypatch.setattr(module, "Console", lambda stderr: Console(file=screen, force_terminal=True, width=200))
    monkeypatch.setattr(module, "_REFRESH", 0.0)
    bar = Bar(Monitor(), live=True)
    if fails:
        monkeypatch.setattr(Bar, "line", lambda *_: 1 / 0)
        with pytest.raises(ZeroDivisionError):
            run(tmp_path, callbacks=[bar], epochs=2)
    else:
        run(tmp_path, callbacks=[bar], epochs=2)
        assert "step 8 of 8" in screen.getvalue()
        assert "100%" in screen.getvalue()
    assert "\x1b[?25h" in screen.getvalue(), "the cursor is back"


def test_speed_of_a_known_clock(monkeypatch):
    now = [100.0]
    monkeypatch.setattr(speed, "time", SimpleNamespace(perf_counter=lambda: now[0]))
    waiting = Waiting()
    rate = Speed()
    for waited in (0.5, 1.0):
        now[0] += 2
        waiting.waited = waited
        rate.note(16, waiting)
    assert rate.read() == (8.0, 0.25, 0.5)
    now[0] += 2
    waiting.waited = 1.5
    rate.note(16, waiting)
    now[0] += 60  # a probe
    waiting = Waiting()
    rate.begin_epoch()
    now[0] += 2
    waiting.waited = 0.3
    rate.note(16, waiting)
    images, share, batches = rate.read()
    assert (images, batches) == (8.0, 0.5)
    assert share == pytest.approx(0.8 / 4)


def test_reading_without_batches():
    assert Speed().read() == (0, 0, 0)


def test_it_must_say_something():
    with pytest.raises(ValueError, match="every=0"):
        Bar(every=0)
