"""Drawings inside a page: SVG whose colours are the page's, so that they follow light and dark.

    chart(lines, ...)      lines and points over two axes, with what a pointer reads at each place
    cloud(points, ...)     points without axes, as a map has them
    ranges(rows, x)        rows of values with the intervals around them, over one axis
    tiling(groups)         every item a tile, groups as patches of tiles
    Figure                 a drawing with its title, what its colours are, and how to read it

A `kind` is a class that the style sheet gives a colour. Places are in units of the drawing, about pixels of a phone.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup, escape

from prototile.reports.page import raised

WIDTH, HEIGHT = 460, 300
KINDS = ("kind2", "kind1", "kind3", "kind4", "kind5", "kind6")  # of things beside each other
LEFT, RIGHT, TOP, BOTTOM = 40, 12, 26, 42
TILE = 10
_NAME, _RANGE, _INSET, _LONGEST = 24, 14, 14, 64  # of rows of ranges: heights, a margin, letters of a name


@dataclass(frozen=True)
class Axis:
    """From `low` to `high`, both of them shown; logarithmic where wished."""

    low: float
    high: float
    ticks: Sequence[float]
    label: str
    log: bool = False

    def place(self, value: float, start: float, end: float) -> float:
        low, high, at = (math.log(x) if self.log else x for x in (self.low, self.high, value))
        return start + (end - start) * (at - low) / (high - low)


@dataclass(frozen=True)
class Line:
    """Points in order; `steps` joins them by stairs, `filled` colours what lies under them."""

    points: Sequence[tuple[float, float]]
    kind: str
    steps: bool = False
    filled: bool = False
    dashed: bool = False


@dataclass(frozen=True)
class Point:
    """A place with something to say."""

    x: float
    y: float
    kind: str
    text: str = ""
    mark: str = "point"  # or "cross"


@dataclass(frozen=True)
class Range:
    """A value and what is as likely, from `low` to `high`."""

    value: float
    low: float
    high: float
    kind: str
    text: str


@dataclass(frozen=True)
class Rule:
    """A level that is worth knowing."""

    level: float
    text: str


@dataclass(frozen=True)
class Tip:
    """What a pointer reads from here to the next one."""

    at: float
    text: str


@dataclass(frozen=True)
class Figure:
    """`legend` names kinds of colour; maps are `square`."""

    title: str
    drawing: Markup
    caption: str
    legend: tuple[tuple[str, str], ...] = ()
    square: bool = False


def even_ticks(high: float, wished: int = 5) -> list[float]:
    """Round numbers from 0 to the first one that is not below `high`."""
    step = _round_step(max(high, 1e-12) / wished)
    return [i * step for i in range(math.ceil(high / step - 1e-9) + 1)]


def power_ticks(low: float, high: float, most: int = 7) -> list[float]:
    """Powers of ten between two positive numbers, both included; 2 and 5 times them where there are few."""
    first, last = math.ceil(math.log10(low) - 1e-9), math.floor(math.log10(high) + 1e-9)
    if last - first >= 2:
        stride = -(-(last - first + 1) // most)
        return [10.0**power for power in range(first, last + 1, stride)]
    finer = [factor * 10.0**power for power in range(first - 1, last + 1) for factor in (1, 2, 5)]
    found = [tick for tick in finer if low * (1 - 1e-9) <= tick <= high * (1 + 1e-9)]
    return found if len(found) > 1 else [low, high]


def round_ticks(low: float, high: float, wished: int = 5) -> list[float]:
    """Round numbers between the two."""
    step = _round_step(max(high - low, 1e-12) / wished)
    first, last = math.ceil(low / step - 1e-9), math.floor(high / step + 1e-9)
    return [round(i * step, 12) + 0.0 for i in range(first, last + 1)]


def _round_step(raw: float) -> float:
    """The first round number that is not below."""
    size = 10 ** math.floor(math.log10(raw))
    return next(size * factor for factor in (1, 2, 2.5, 5, 10) if size * factor >= raw * (1 - 1e-9))


def chart(
    lines: Sequence[Line],
    x: Axis,
    y: Axis,
    *,
    title: str,
    rules: Sequence[Rule] = (),
    uprights: Sequence[Rule] = (),
    dots: Sequence[tuple[float, float, str]] = (),
    points: Sequence[Point] = (),
    tips: Sequence[Tip] = (),
) -> Markup:
    """Lines over two axes. `dots` are places of note: x, y and kind; `uprights` are levels of x."""
    right, bottom = WIDTH - RIGHT, HEIGHT - BOTTOM

    def across(value: float) -> float:
        return x.place(value, LEFT, right)

    def down(value: float) -> float:
        return y.place(value, bottom, TOP)

    parts = [Markup('<g class="grid">')]
    for tick in y.ticks:
        at = down(tick)
        parts.append(_line(LEFT, at, right, at))
        parts.append(_text(LEFT - 7, at + 4, _number(tick), "tick end"))
    for tick in x.ticks:
        at = across(tick)
        parts.append(_line(at, bottom, at, bottom + 4))
        parts.append(_text(at, bottom + 17, _number(tick), "tick middle"))
    parts.append(Markup("</g>"))
    parts.append(_text((LEFT + right) / 2, HEIGHT - 6, x.label, "name middle"))
    parts.append(_text(0, 12, y.label, "name"))
    parts.append(Markup('<g class="rules">'))
    for rule in rules:
        parts.append(_line(LEFT, down(rule.level), right, down(rule.level)))
        parts.append(_text(right, down(rule.level) - 5, rule.text, "note end"))
    for rule in uprights:
        at = across(rule.level)
        late = at > (LEFT + right) / 2
        parts.append(_line(at, TOP, at, bottom))
        parts.append(_text(at - 5 if late else at + 5, TOP + 10, rule.text, "note end" if late else "note"))
    parts.append(Markup("</g>"))
    for line in lines:
        places = [(across(a), down(b)) for a, b in line.points]
        drawn = _path(places, line.steps)
        if line.filled:
            area = f"{drawn}V{_r(bottom)}H{_r(places[0][0])}z"
            parts.append(Markup('<path class="area {}" d="{}"/>').format(line.kind, area))
        dashed = " dashed" if line.dashed else ""
        parts.append(Markup('<path class="line{} {}" d="{}"/>').format(dashed, line.kind, drawn))
    for a, b, kind in dots:
        parts.append(
            Markup('<circle class="dot {}" cx="{}" cy="{}" r="4.5"/>').format(kind, _r(across(a)), _r(down(b)))
        )
    edges = [across(tip.at) for tip in tips] + [right]
    for tip, start, end in zip(tips, edges, edges[1:], strict=False):
        parts.append(
            Markup('<rect class="band" x="{}" y="{}" width="{}" height="{}" data-tip="{}"/>').format(
                _r(start), TOP, _r(max(end - start, 0)), bottom - TOP, tip.text
            )
        )
    parts += [_mark(point, across(point.x), down(point.y)) for point in points]  # above the bands, so that they speak
    return drawing(parts, WIDTH, HEIGHT, title)


def cloud(points: Sequence[Point], *, title: str, side: int = WIDTH) -> Markup:
    """Points in a square, both axes on one scale."""
    lows, highs = ([end(p.x for p in points), end(p.y for p in points)] for end in (min, max))
    margin = 8
    scale = (side - 2 * margin) / max(highs[0] - lows[0], highs[1] - lows[1], 1e-12)
    x0, y0 = ((low + high) / 2 for low, high in zip(lows, highs, strict=True))
    parts = [Markup('<rect class="frame" width="{}" height="{}"/>').format(side, side)]
    parts += [_mark(p, side / 2 + scale * (p.x - x0), side / 2 - scale * (p.y - y0)) for p in points]
    return drawing(parts, side, side, title)


def ranges(rows: Sequence[tuple[str, Sequence[Range]]], x: Axis, *, title: str, rules: Sequence[Rule] = ()) -> Markup:
    """Each row a name and, below it, its values one under the other; `rules` are levels of x."""
    left, right = _INSET, WIDTH - _INSET
    height = sum(_NAME + _RANGE * len(found) for _, found in rows)
    bottom = TOP + height

    def across(value: float) -> float:
        return x.place(value, left, right)

    parts = [Markup('<g class="grid">')]
    for tick in x.ticks:
        at = across(tick)
        parts.append(_line(at, TOP - 6, at, bottom))
        parts.append(_text(at, bottom + 17, _number(tick), "tick middle"))
    parts.append(Markup("</g>"))
    parts.append(_text(WIDTH / 2, bottom + BOTTOM - 6, x.label, "name middle"))
    parts.append(Markup('<g class="rules">'))
    for rule in rules:
        parts.append(_line(across(rule.level), TOP - 6, across(rule.level), bottom))
        parts.append(_text(across(rule.level), TOP - 12, rule.text, "note middle"))
    parts.append(Markup("</g>"))
    y = float(TOP)
    for name, found in rows:
        parts.append(_text(0, y + 13, name if len(name) <= _LONGEST else f"{name[: _LONGEST - 1]}…", "name"))
        y += _NAME
        for each in found:
            start, end = across(each.low), across(each.high)
            parts.append(_line_of(each.kind, start, end, y))
            parts.append(_mark(Point(each.value, 0, each.kind, each.text), across(each.value), y))
            y += _RANGE
    return drawing(parts, WIDTH, bottom + BOTTOM, title)


def tiling(groups: Sequence[int], *, title: str) -> Markup:
    """A tile for every item, in patches: groups follow each other along a curve that keeps neighbours together."""
    places = _curve(sum(groups))
    owner: dict[tuple[int, int], int] = {}
    parts, start = [], 0
    for index, size in enumerate(groups):
        cells = places[start : start + size]
        start += size
        owner |= dict.fromkeys(cells, index)
        outline = "".join(f"M{TILE * a} {TILE * b}h{TILE}v{TILE}h-{TILE}z" for a, b in cells)
        tip = "unique" if size == 1 else f"{size} prototypes, one direction"
        shade = min(size.bit_length() - 1, 5)
        parts.append(Markup('<path class="patch shade{}" d="{}" data-tip="{}"/>').format(shade, outline, tip))
    borders = []
    for (a, b), index in owner.items():
        if owner.get((a + 1, b)) != index:
            borders.append(f"M{TILE * (a + 1)} {TILE * b}v{TILE}")
        if owner.get((a, b + 1)) != index:
            borders.append(f"M{TILE * a} {TILE * (b + 1)}h{TILE}")
    parts.append(Markup('<path class="joint" d="{}"/>').format("".join(borders)))
    width, height = (TILE * (max(place[axis] for place in owner) + 1) for axis in (0, 1))
    return drawing(parts, width, height, title)


def _curve(number: int) -> list[tuple[int, int]]:
    """Places along Hilbert curves in squares side by side, the largest that the number fills."""
    side = 1 << (max(number, 1).bit_length() - 1) // 2
    square = [_hilbert(side, i) for i in range(side * side)]
    squares = -(-number // len(square))
    return [(a + side * i, b) for i in range(squares) for a, b in square][:number]


def _hilbert(side: int, index: int) -> tuple[int, int]:
    a = b = 0
    scale = 1
    while scale < side:
        flip_a, flip_b = 1 & (index // 2), 1 & (index ^ (index // 2))
        if flip_b == 0:
            if flip_a == 1:
                a, b = scale - 1 - a, scale - 1 - b
            a, b = b, a
        a, b = a + scale * flip_a, b + scale * flip_b
        index //= 4
        scale *= 2
    return a, b


def drawing(parts: Sequence[Markup], width: float, height: float, title: str) -> Markup:
    head = Markup('<svg viewBox="0 0 {} {}" role="img" aria-label="{}">').format(width, height, title)
    return head + Markup("").join(parts) + Markup("</svg>")


def _mark(point: Point, x: float, y: float) -> Markup:
    """A stroke of no length with round ends, or two that cross: its width stays when the drawing is enlarged."""
    shape = f"M{_r(x)} {_r(y)}h0" if point.mark == "point" else f"M{_r(x - 4)} {_r(y)}h8M{_r(x)} {_r(y - 4)}v8"
    tip = Markup(' data-tip="{}"').format(point.text) if point.text else Markup("")
    return Markup('<path class="{} {}" d="{}"{}/>').format(point.mark, point.kind, shape, tip)


def _path(places: Sequence[tuple[float, float]], steps: bool) -> str:
    texts = [f"{_r(a)} {_r(b)}" for a, b in places]
    if not steps:
        return "M" + "L".join(texts)
    stairs = [f"H{_r(a)}V{_r(b)}" for a, b in places[1:]]
    return f"M{texts[0]}" + "".join(stairs)


def _line(x1: float, y1: float, x2: float, y2: float) -> Markup:
    return Markup('<line x1="{}" y1="{}" x2="{}" y2="{}"/>').format(_r(x1), _r(y1), _r(x2), _r(y2))


def _line_of(kind: str, start: float, end: float, y: float) -> Markup:
    return Markup('<path class="line {}" d="M{} {}H{}"/>').format(kind, _r(start), _r(y), _r(end))


def _text(x: float, y: float, text: str, kind: str) -> Markup:
    return Markup('<text class="{}" x="{}" y="{}">{}</text>').format(kind, _r(x), _r(y), escape(text))


def _number(value: float) -> str:
    size = abs(value)
    if size >= 1e5:
        return f"{value / 1e6:,.10g}M" if size >= 1e6 else f"{value / 1e3:,.10g}k"
    if 0 < size < 1e-3 and math.isclose(power := math.log10(size), round(power), abs_tol=1e-9):
        return ("−" if value < 0 else "") + "10" + raised(round(power))
    return f"{value:,.10g}".replace("-", "−")


def _r(value: float) -> str:
    """To a tenth of a unit."""
    return f"{value:.1f}".removesuffix(".0")
