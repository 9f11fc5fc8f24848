"""Numbers as people read them: with separators, units and as many digits as mean something."""

from __future__ import annotations

import math

_SUPERSCRIPTS = str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹")
MISSING = "–"
SPACE = "\u00a0"
"""Between a number and its unit, which no line break may part."""


CUT_SHORT = "cut short"
"""Where the end of a stage would stand that was killed, or is at work."""


def moment(finished: str | None) -> str:
    """ISO 8601 in UTC without the T and the zone, which the head of its column says."""
    return (finished or "").replace("T", " ").removesuffix("Z").removesuffix("+00:00")


def plural(many: int, one: str) -> str:
    """1 → "1 image", 2 → "2 images"."""
    return f"{many:,} {one}" if many == 1 else f"{many:,} {one}s"


def known(value: float | None) -> bool:
    """Whether there is a finite number."""
    return value is not None and math.isfinite(value)


def count(value: float) -> str:
    """12345 → "12,345"."""
    return f"{value:,.0f}"


def compact(value: float) -> str:
    """12345 → "12.3 k"; of parameters, multiply-accumulates, channels."""
    for factor, unit in ((1e12, "T"), (1e9, "G"), (1e6, "M"), (1e3, "k")):
        if abs(value) >= 0.9995 * factor:
            return number(value / factor) + SPACE + unit
    return number(value)


def size(value: float) -> str:
    """Bytes → "57.5 MB" (decimal units)."""
    if abs(value) < 999.5:
        return f"{value:.0f}{SPACE}B"
    return f"{compact(value)}B"


def number(value: float) -> str:
    """Three significant digits: 0.01234 → "0.0123", 4.0 → "4", 1.5e-7 → "1.5·10⁻⁷"."""
    if value == 0:
        return "0"
    if not math.isfinite(value):
        return MISSING
    if 1e-3 <= abs(value) < 999.5:
        return _minus(_trimmed(f"{value:.{max(0, 2 - math.floor(math.log10(abs(value))))}f}"))
    if 999.5 <= abs(value) < 1e5:
        return _minus(f"{value:,.0f}")
    digits, _, exponent = f"{value:.1e}".partition("e")
    times = _trimmed(digits) + "·"
    return _minus("" if times == "1·" else times) + power(int(exponent))


def power(exponent: int) -> str:
    """−5 → "10⁻⁵"."""
    return "10" + str(exponent).translate(_SUPERSCRIPTS)


def percent(fraction: float) -> str:
    """0.8325 → "83.3 %"; small ones keep two significant digits, and those near 100 % the digit that says so."""
    value = 100 * fraction
    if not math.isfinite(value):
        return MISSING
    if value == 0 or abs(value) >= 99.95:
        return _minus(f"{_trimmed(f'{value:.2f}')}{SPACE}%")
    if abs(value) >= 1:
        return _minus(f"{value:.1f}{SPACE}%")
    return f"{number(float(f'{value:.2g}'))}{SPACE}%"


def duration(seconds: float) -> str:
    """Wall time: "0.8 ms", "12.3 s", "4 min 12 s", "2 h 05 min"."""
    if not math.isfinite(seconds):
        return MISSING
    for limit, factor, unit in ((1e-3, 1e6, "µs"), (1.0, 1e3, "ms"), (99.95, 1.0, "s")):
        if seconds < limit:
            return f"{number(seconds * factor)}{SPACE}{unit}"
    minutes, rest = divmod(round(seconds), 60)
    whole = f"{minutes} min {rest:02d} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02d} min"
    return whole.replace(" ", SPACE)


def fewer(before: float, after: float) -> str:
    """What was removed: "83.3 % fewer", or "unchanged"."""
    if before <= 0 or before == after:
        return "unchanged"
    return f"{percent(abs(1 - after / before))} {'fewer' if after < before else 'more'}"


def printable(text: str) -> str:
    """`text` with replacement characters for what no document may contain: control characters, lone surrogates."""
    whole = text.encode("utf-8", "replace").decode("utf-8")
    return "".join(letter if letter.isprintable() or letter in (" ", SPACE) else "\ufffd" for letter in whole)


def shorten(text: str, letters: int) -> str:
    """At most so many letters, the middle left out: the end of a module path tells most."""
    whole = printable(text)
    if len(whole) <= letters:
        return whole
    start = (letters - 1) // 3
    return f"{whole[:start]}…{whole[len(whole) - (letters - 1 - start) :]}"


def _trimmed(digits: str) -> str:
    return digits.rstrip("0").rstrip(".") if "." in digits else digits


def _minus(text: str) -> str:
    """A real minus sign, as wide as a plus."""
    return text.replace("-", "−")
