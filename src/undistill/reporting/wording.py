"""How names and numbers are written, the same way in every part of a report."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from undistill.functional import Difference, Interval, clip, format_interval
from undistill.methods import build_method
from undistill.registry import Spec

__all__ = [
    "change",
    "difference",
    "distinguish",
    "gap",
    "join",
    "method_label",
    "model_label",
    "ordinary",
    "points",
    "seeds",
    "signed",
    "value",
]

_SYMBOLS = {"temperature": "τ", "alpha": "α", "weight": "ω", "smoothing": "ε"}


def method_label(spec: str) -> str:
    """Write a method with the paper's symbols: ``kd(alpha=0.9, temperature=20.0)`` as ``kd (τ=20, α=0.9)``.

    What has no symbol is left out: ``distinguish`` adds it where it tells two methods apart.
    """
    method = build_method(spec)
    given = {key: value for key, value in method.model_dump().items() if method.added.get(key, ...) != value}
    args = ", ".join(f"{symbol}={_plain(given[key])}" for key, symbol in _SYMBOLS.items() if key in given)
    return f"{method.name} ({args})" if args else method.name


def model_label(spec: str) -> str:
    """Write a model; one that was handed over in Python by its class and the start of its checksum."""
    if not spec.startswith("instance("):
        return spec
    given = Spec.parse(spec).kwargs
    return f"{str(given['type']).rpartition('.')[2]} #{str(given['sha256'])[:6]}"


def distinguish(labels: Sequence[str], details: Sequence[Mapping[str, Any]]) -> list[str]:
    """Add to equal labels the details in which they differ.

    Args:
        labels: One a thing.
        details: Of each thing, nested by key.
    """
    flat = [_flatten(detail) for detail in details]
    counts = Counter(labels)
    written = []
    for label, own in zip(labels, flat, strict=True):
        alike = [other for name, other in zip(labels, flat, strict=True) if name == label]
        differing = [key for key in own if any(other.get(key) != own[key] for other in alike)]
        extra = ", ".join(f"{key}={_plain(own[key])}" for key in differing if own[key] is not None)
        written.append(f"{label} [{extra}]" if counts[label] > 1 and extra else label)
    return written


def value(interval: Interval, *, with_n: bool, digits: int = 2) -> str:
    """Write a mean in percent with its interval, and with its number of seeds where the reader needs it.

    An interval that would leave 0..100 is written by its ends: ``99.60 [98.90, 100.00]``.
    """
    mean, count = format_interval(interval, digits).split(" (n=")
    low, high = clip(interval) or (interval.mean, interval.mean)
    if interval.half_width and (low == 0 or high == 100):
        mean = f"{interval.mean:.{digits}f} [{low:.{digits}f}, {high:.{digits}f}]"
    return f"{mean} (n={count}" if with_n else mean


def difference(mean: float, interval: tuple[float, float] | None = None) -> str:
    """Write a difference in brackets, with its interval where there is one: ``(−5.40 [−9.9, −0.9])``."""
    return f"({change(mean, interval)})"


def change(mean: float, interval: tuple[float, float] | None = None) -> str:
    """Write a difference with its interval where there is one: ``−5.40 [−9.9, −0.9]``."""
    return f"{signed(mean)}{_ends(interval)}"


def _ends(interval: tuple[float, float] | None) -> str:
    if interval is None:
        return ""
    digits = 1 if min(map(abs, interval)) >= 0.05 else 2  # on which side of 0 an end is must be seen
    low, high = (signed(end, digits) for end in interval)
    return f" [{low}, {high}]"


def signed(number: float, digits: int = 2) -> str:
    """Write a difference with its sign: ``+1.20``, ``−0.40``, ``0.00``."""
    text = f"{abs(number):.{digits}f}"
    if float(text) == 0:
        return text
    return f"{'+' if number > 0 else '−'}{text}"


def gap(found: Difference) -> str:
    """Write a difference in a sentence, with its interval where it has one: ``+1.2 points [+0.3, +2.1]``."""
    return f"{signed(found.mean, 1)} points{_ends(found.ends)}"


def seeds(n: int) -> str:
    """Write a number of seeds."""
    return "1 seed" if n == 1 else f"{n} seeds"


def ordinary(interval: Interval | None) -> str:
    """Write a count: the mean where seeds differ in it."""
    return "–" if interval is None else f"{interval.mean:,.0f}"


def points(number: float) -> str:
    """Write the size of a difference of percentages: ``0.4 points``."""
    text = f"{abs(number):.1f}"
    return f"{text} point" if text == "1.0" else f"{text} points"


def join(parts: Sequence[str]) -> str:
    """Write a list in prose: ``a, b and c``."""
    if len(parts) < 2:
        return "".join(parts)
    return f"{', '.join(parts[:-1])} and {parts[-1]}"


def _plain(given: Any) -> str:
    return f"{given:g}" if isinstance(given, float) else str(given)


def _flatten(detail: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, given in detail.items():
        if isinstance(given, Mapping):
            flat.update(_flatten(given, f"{prefix}{key}."))
        else:
            flat[f"{prefix}{key}"] = given
    return flat
