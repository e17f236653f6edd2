"""Figures computed from measurements."""

import math
import statistics


def make_goal(name: str, value: float | None, goal: float, *, at_least: bool) -> dict:
    """One entry of `goals`; a value that could not be measured meets nothing and misses nothing."""
    met = None if value is None else bool(value >= goal if at_least else value <= goal)
    return dict(name=name, value=value if value is None else round(value, 4), goal=goal, met=met)


def exponent(sizes, seconds) -> float:
    """Slope of the least-squares line through the logarithms."""
    x, y = [math.log(v) for v in sizes], [math.log(v) for v in seconds]
    mean_x, mean_y = statistics.fmean(x), statistics.fmean(y)
    squares = sum((a - mean_x) ** 2 for a in x)
    return sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y)) / squares
