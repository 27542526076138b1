"""Checks of single settings; each raises a ConfigError that names the key, the value and what is allowed."""

import math
from collections.abc import Collection, Sequence
from typing import TypeGuard

from noah_lightning.errors import ConfigError


def whole_number(key: str, value: object, low: int, high: int | None = None) -> int:
    """``value`` if it is an integer in ``low..high``."""
    if isinstance(value, int) and not isinstance(value, bool) and low <= value and (high is None or value <= high):
        return value
    allowed = f"of at least {low}" if high is None else f"from {low} to {high}"
    raise ConfigError(f"{key}={value!r} must be a whole number {allowed}")


def rate(key: str, value: object) -> float:
    """``value`` as a float if it is a number in [0, 1), the probability of leaving something out."""
    if is_number(value) and 0 <= value < 1:
        return float(value)
    raise ConfigError(f"{key}={value!r} must be a number of at least 0 and below 1")


def fraction(key: str, value: object) -> float:
    """``value`` as a float if it is a number in (0, 1]."""
    if is_number(value) and 0 < value <= 1:
        return float(value)
    raise ConfigError(f"{key}={value!r} must be a number above 0 and at most 1")


def share(key: str, value: object) -> float:
    """``value`` as a float if it is a number in (0, 1), a part that is neither nothing nor all."""
    if is_number(value) and 0 < value < 1:
        return float(value)
    raise ConfigError(f"{key}={value!r} must be a number above 0 and below 1")


def positive(key: str, value: object) -> float:
    """``value`` as a float if it is a finite number above 0."""
    if is_number(value) and 0 < value < math.inf:
        return float(value)
    raise ConfigError(f"{key}={value!r} must be a number above 0")


def channel_values(key: str, values: object, zero_allowed: bool) -> tuple[float, float, float]:
    """Three numbers, one for each of red, green and blue, on the scale where white is 1."""
    allowed = "3 numbers from 0 to 1" if zero_allowed else "3 numbers above 0 and at most 1"
    mistake = ConfigError(f"{key}={values} must be {allowed} (red, green, blue; white is 1)")
    if not isinstance(values, Sequence) or isinstance(values, str) or len(values) != 3:
        raise mistake
    if not all(is_number(value) and 0 <= value <= 1 for value in values):
        raise mistake
    if not zero_allowed and 0 in values:
        raise mistake
    red, green, blue = (float(value) for value in values)
    return red, green, blue


def flag(key: str, value: object) -> bool:
    """``value`` if it is true or false; YAML's ``no`` arrives as a text that Python would take for true."""
    if isinstance(value, bool):
        return value
    raise ConfigError(f"{key}={value!r} must be true or false")


def text(key: str, value: object) -> str:
    """``value`` if it is a text that is not empty; YAML's ``1e3`` arrives as a number."""
    if isinstance(value, str) and value:
        return value
    raise ConfigError(f"{key}={value!r} must be a text")


def one_of(key: str, value: object, allowed: Collection[str]) -> str:
    """``value`` if it is one of the words allowed."""
    if isinstance(value, str) and value in allowed:
        return value
    raise ConfigError(f"{key}={value!r} must be one of {', '.join(allowed)}")


def is_number(value: object) -> TypeGuard[float]:
    """Whether it is a number; true and false are none."""
    return isinstance(value, int | float) and not isinstance(value, bool)
