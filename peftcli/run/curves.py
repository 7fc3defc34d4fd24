"""loss.svg: the training and evaluation loss over the steps, drawn by hand so that no plotting package is needed."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from typing import Any

Point = tuple[float, float]

WIDTH, HEIGHT = 640, 320
LEFT, RIGHT, TOP, BOTTOM = 58, 16, 30, 42
# Okabe and Ito's blue and vermilion: told apart by colour-blind readers; the shapes differ as well.
TRAIN_COLOUR, EVAL_COLOUR, INK = "#0072b2", "#d55e00", "#767676"


def curves(records: Iterable[dict[str, Any]]) -> dict[str, list[Point]]:
    """(step, loss) points of each curve, from the lines of metrics.jsonl; values that are not finite are left out."""
    found: dict[str, list[Point]] = {"loss": [], "eval_loss": []}
    for record in records:
        for name, points in found.items():
            value = record.get(name)
            if isinstance(value, int | float) and math.isfinite(value):
                points.append((float(record["step"]), float(value)))
    return found


def ticks(low: float, high: float, count: int = 5) -> list[float]:
    """About `count` round numbers from low to high."""
    span = high - low or abs(high) or 1.0
    raw = span / count
    magnitude = 10.0 ** math.floor(math.log10(raw))
    step = next(m * magnitude for m in (1, 2, 2.5, 5, 10) if m * magnitude >= raw)
    first = math.ceil(low / step - 1e-9)
    return [float(f"{step * i:.12g}") for i in range(first, math.floor(high / step + 1e-9) + 1)]


class _Frame:
    """Maps (step, loss) to the drawing's coordinates."""

    def __init__(self, points: Sequence[Point]) -> None:
        steps = [step for step, _ in points]
        losses = [loss for _, loss in points]
        self.x_low, self.x_high = min(steps), max(steps)
        self.y_low, self.y_high = min(0.0, *losses), max(losses) * 1.05
        if self.x_low == self.x_high:
            self.x_low -= 1
        if self.y_low == self.y_high:
            self.y_high += 1

    def x(self, step: float) -> float:
        return LEFT + (step - self.x_low) / (self.x_high - self.x_low) * (WIDTH - LEFT - RIGHT)

    def y(self, loss: float) -> float:
        return HEIGHT - BOTTOM - (loss - self.y_low) / (self.y_high - self.y_low) * (HEIGHT - TOP - BOTTOM)

    def axes(self) -> list[str]:
        parts = []
        for loss in ticks(self.y_low, self.y_high):
            y = self.y(loss)
            parts.append(
                f'<line x1="{LEFT}" x2="{WIDTH - RIGHT}" y1="{y:.1f}" y2="{y:.1f}" stroke-opacity=".25"/>'
            )
            parts.append(_text(LEFT - 8, y + 4, f"{loss:g}", "end"))
        below = HEIGHT - BOTTOM + 18
        parts += [
            _text(self.x(step), below, f"{step:g}", "middle") for step in ticks(self.x_low, self.x_high)
        ]
        parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 6, "step", "middle"))
        return parts


def _text(x: float, y: float, text: str, anchor: str, colour: str = INK) -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}" stroke="none">{text}</text>'


def _line(points: Sequence[str], colour: str) -> str:
    return f'<polyline points="{" ".join(points)}" stroke="{colour}" stroke-width="2"/>'


def _draw(frame: _Frame, name: str, points: Sequence[Point], label_x: float) -> list[str]:
    """One curve: evaluations, and curves too short for a line, also get dots."""
    colour = TRAIN_COLOUR if name == "loss" else EVAL_COLOUR
    places = [(frame.x(step), frame.y(loss)) for step, loss in points]
    parts = [_line([f"{x:.1f},{y:.1f}" for x, y in places], colour)] if len(places) > 1 else []
    if name == "eval_loss" or len(places) == 1:
        parts += [
            f'<circle cx="{x:.1f}" cy="{y:.1f}" r="4" fill="{colour}" stroke="none"/>' for x, y in places
        ]
    label = "training loss" if name == "loss" else "evaluation loss ●"
    return [*parts, _text(label_x, TOP - 12, f"{label}, last {points[-1][1]:.4g}", "start", colour)]


def loss_svg(records: Iterable[dict[str, Any]]) -> str:
    """The drawing of the curves in the lines of metrics.jsonl; says so where there is nothing to draw yet."""
    drawn = {name: points for name, points in curves(records).items() if points}
    body = [_text(WIDTH / 2, HEIGHT / 2, "no loss was logged", "middle")]
    if drawn:
        frame = _Frame([point for points in drawn.values() for point in points])
        body = frame.axes()
        for place, (name, points) in enumerate(drawn.items()):
            body += _draw(frame, name, points, LEFT + place * 240)
    head = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" role="img" '
        f'aria-label="training and evaluation loss" font-family="sans-serif" font-size="12" '
        f'fill="none" stroke="{INK}">'
    )
    return "\n".join([head, *body, "</svg>", ""])
