"""Curves as inline SVG: told apart by dashes and a label at their end as well as by colour."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from peftcli.run.curves import Point, ticks
from peftcli.run.figures import figure
from peftcli.run.report.history import Curve
from peftcli.run.report.markup import Markup, tag

WIDTH, HEIGHT, TOP, BOTTOM = 400, 216, 12, 36
LETTER_WIDTH, LABEL_HEIGHT = 6.6, 12  # at the charts' size of type
COLOURS = 6
# As many dashes as have no divisor in common with the colours: 30 pairs before one comes again.
DASHES = (None, "7 3", "2 3", "9 3 2 3", "5 2 1 2 1 2")
MOST_POINTS = 800  # beyond the pixels there are
MOST_MARKS = 60


@dataclass(frozen=True, slots=True)
class Line:
    """A curve in a chart. `look` chooses its colour and dashes, `name` is what the description calls it.

    `label` stands at its end, or nothing where the chart has one curve only.
    """

    name: str
    label: str
    look: int
    curve: Curve

    @property
    def points(self) -> list[Point]:
        """Its (step, value) pairs."""
        return list(zip(self.curve.steps, self.curve.values, strict=True))


def colour(look: int) -> str:
    """The class that page.css gives a colour."""
    return f"c{look % COLOURS}"


def dashes(look: int) -> str | None:
    """The pattern of a line, None for a whole one."""
    return DASHES[look % len(DASHES)]


def swatch(look: int) -> Markup:
    """A short piece of the line, for a legend."""
    line = tag("line", x1=0, x2=34, y1=5, y2=5, stroke_dasharray=dashes(look))
    return tag(
        "svg",
        line,
        class_=f"swatch {colour(look)}",
        viewBox="0 0 34 10",
        width=34,
        height=10,
        aria_hidden="true",
    )


def chart(title: str, lines: Sequence[Line], steps: Point, number: int) -> Markup:
    """A figure of one metric (or of two that share a scale).

    Args:
        title: the metric.
        lines: at least one, each with at least one point.
        steps: the first and the last step of the axis, the same for all charts of a page.
        number: of the chart on its page.
    """
    frame = _Frame(lines, steps)
    title_id, description_id = f"chart-{number}-title", f"chart-{number}-description"
    drawing = tag(
        "svg",
        tag("title", title, id=title_id),
        tag("desc", " ".join(f"{_described(line)}." for line in lines), id=description_id),
        *frame.axes(),
        *(_drawn(frame, line) for line in lines),
        *_end_labels(frame, lines),
        class_="chart",
        viewBox=f"0 0 {WIDTH} {HEIGHT}",
        role="img",
        aria_labelledby=f"{title_id} {description_id}",
    )
    return tag("figure", tag("figcaption", title), drawing)


def thinned(points: list[Point], most: int = MOST_POINTS) -> list[Point]:
    """At most about `most` points of a curve, its peaks and troughs among them."""
    if len(points) <= most:
        return points
    size = -(-len(points) // (most // 2))
    kept = [points[0]]
    for start in range(0, len(points), size):
        part = points[start : start + size]
        ends = {min(part, key=lambda point: point[1]), max(part, key=lambda point: point[1])}
        kept += sorted(ends)
    return [*kept, points[-1]]


class _Frame:
    """Maps (step, value) to the drawing's coordinates."""

    def __init__(self, lines: Sequence[Line], steps: Point) -> None:
        values = [value for line in lines for value in line.curve.values]
        self.x_low, self.x_high = steps if steps[0] < steps[1] else (steps[0] - 1, steps[1] + 1)
        self.y_low, self.y_high = _padded(min(values), max(values))
        self.y_ticks = ticks(self.y_low, self.y_high)
        self.left = 14 + LETTER_WIDTH * max((len(f"{value:g}") for value in self.y_ticks), default=0)
        self.right = WIDTH - 10 - LETTER_WIDTH * max(len(line.label) for line in lines)

    def x(self, step: float) -> float:
        return self.left + (step - self.x_low) / (self.x_high - self.x_low) * (self.right - self.left)

    def y(self, value: float) -> float:
        return HEIGHT - BOTTOM - (value - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> list[Markup]:
        parts = []
        for value in self.y_ticks:
            y = _at(self.y(value))
            parts.append(tag("line", class_="grid", x1=_at(self.left), x2=_at(self.right), y1=y, y2=y))
            parts.append(_text(self.left - 7, self.y(value) + 4, f"{value:g}", "end"))
        below = HEIGHT - BOTTOM + 16
        parts += [
            _text(self.x(step), below, f"{step:,g}", "middle") for step in ticks(self.x_low, self.x_high)
        ]
        return [*parts, _text((self.left + self.right) / 2, HEIGHT - 4, "step", "middle")]


def _padded(low: float, high: float) -> Point:
    """The range of the axis: a little more than that of the values, and never so narrow that numbers run out."""
    room = 0.06 * (high - low)
    if room <= 1e-9 * max(abs(low), abs(high)):
        room = 0.1 * abs(high) or 1.0
    # Most metrics are never negative, and an axis that says so reads better.
    return (0.0 if 0 <= low < room else low - room), high + room


def _at(place: float) -> str:
    return f"{place:.1f}"


def _text(x: float, y: float, text: str, anchor: str) -> Markup:
    return tag("text", text, x=_at(x), y=_at(y), text_anchor=anchor)


def _drawn(frame: _Frame, line: Line) -> Markup:
    """The curve; where its points are few, each is marked and says its value."""
    places = [(_at(frame.x(step)), _at(frame.y(value))) for step, value in thinned(line.points)]
    path = tag("polyline", points=" ".join(f"{x},{y}" for x, y in places), stroke_dasharray=dashes(line.look))
    marks: list[Markup] = []
    if len(line.curve) <= MOST_MARKS:
        says = [f"{line.name}, step {figure(step)}: {figure(value)}" for step, value in line.points]
        marks = [
            tag("circle", tag("title", text), cx=x, cy=y, r=2.5)
            for (x, y), text in zip(places, says, strict=True)
        ]
    return tag("g", path, *marks, class_=colour(line.look))


def _end_labels(frame: _Frame, lines: Sequence[Line]) -> list[Markup]:
    """The labels at the curves' ends; those at the right edge are moved apart where they would overlap."""
    if len(lines) == 1:
        return []
    edge = [line for line in lines if line.curve.steps[-1] == frame.x_high]
    inside = [line for line in lines if line.curve.steps[-1] != frame.x_high]
    return [
        *(_end_label(frame, line, frame.y(line.curve.values[-1])) for line in inside),
        *_stacked(frame, edge),
    ]


def _stacked(frame: _Frame, lines: Sequence[Line]) -> list[Markup]:
    ordered = sorted(lines, key=lambda line: frame.y(line.curve.values[-1]))
    places: list[float] = []
    for line in ordered:
        wanted = frame.y(line.curve.values[-1])
        places.append(max(wanted, places[-1] + LABEL_HEIGHT) if places else wanted)
    lowest = float(HEIGHT - BOTTOM)
    for index in reversed(range(len(places))):
        places[index] = min(places[index], lowest)
        lowest = places[index] - LABEL_HEIGHT
    return [_end_label(frame, line, place) for line, place in zip(ordered, places, strict=True)]


def _end_label(frame: _Frame, line: Line, y: float) -> Markup:
    x = frame.x(line.curve.steps[-1]) + 6
    return tag("text", line.label, x=_at(x), y=_at(y + 4), class_=colour(line.look))


def _described(line: Line) -> str:
    """The curve in words, for who does not see it."""
    points = line.points
    if len(points) == 1:
        return f"{line.name}: {_told(points[0])}"
    lowest, highest = min(points, key=lambda point: point[1]), max(points, key=lambda point: point[1])
    return (
        f"{line.name}: {len(points):,} points, from {_told(points[0])} to {_told(points[-1])}; "
        f"lowest {_told(lowest)}, highest {_told(highest)}"
    )


def _told(point: Point) -> str:
    return f"{figure(point[1])} at step {figure(point[0])}"
