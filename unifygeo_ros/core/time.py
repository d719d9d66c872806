"""Time is an integer number of nanoseconds, as in `builtin_interfaces/Time`; durations in settings are seconds."""

from __future__ import annotations

NS_PER_S = 1_000_000_000


def ns_from_s(seconds: float) -> int:
    """The nearest whole number of nanoseconds."""
    return round(seconds * NS_PER_S)


def s_from_ns(nanoseconds: int) -> float:
    """Seconds, rounded to the nearest float64: exact to 0.2 µs for stamps of this century."""
    return nanoseconds / NS_PER_S


def stamp_from_parts(seconds: int, nanoseconds: int) -> int:
    """A message's stamp (`sec`, `nanosec`) in nanoseconds."""
    return int(seconds) * NS_PER_S + int(nanoseconds)


def parts_from_stamp(stamp_ns: int) -> tuple[int, int]:
    """Inverse of `stamp_from_parts`: (`sec`, `nanosec`) with 0 ≤ nanosec < 10⁹."""
    return divmod(stamp_ns, NS_PER_S)
