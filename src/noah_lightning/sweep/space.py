"""What a search may choose from: the swept settings of a command, with values to pick or an interval each."""

import math
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from hydra.core.override_parser.types import IntervalSweep, Override

from noah_lightning.errors import ConfigError
from noah_lightning.sweep.plan import Job, job_of, parse, swept_values

if TYPE_CHECKING:
    from optuna.distributions import BaseDistribution

Value = str | int | float  # a choice as it stands in the command, or a number of an interval


@dataclass(frozen=True)
class Choice:
    """Values without an order."""

    values: tuple[str, ...]

    def ends(self) -> tuple[Value, ...]:
        """Values that show a mistake if there is one."""
        return self.values

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import CategoricalDistribution

        return CategoricalDistribution(self.values)


@dataclass(frozen=True)
class Interval:
    """Numbers from ``low`` to ``high``, both included; whole ones if both are ``int``.

    Attributes:
        log: as many below the geometric mean of the ends as above it.
    """

    low: int | float
    high: int | float
    log: bool

    def ends(self) -> tuple[Value, ...]:
        return self.low, self.high

    def distribution(self) -> "BaseDistribution":
        from optuna.distributions import FloatDistribution, IntDistribution

        if isinstance(self.low, int) and isinstance(self.high, int):
            return IntDistribution(self.low, self.high, log=self.log)
        return FloatDistribution(self.low, self.high, log=self.log)


@dataclass(frozen=True)
class Space:
    """All settings of a command, some of them searched.

    Attributes:
        overrides: keys and values in the order of the command; those that are searched have None.
        searched: what they may be, by key.
    """

    overrides: tuple[tuple[str, str | None], ...]
    searched: Mapping[str, Choice | Interval]

    def job(self, number: int, values: Mapping[str, Value]) -> Job:
        """The job with these values.

        Raises:
            UserError: they do not fit together.
        """
        words = [f"{key}={values[key] if fixed is None else fixed}" for key, fixed in self.overrides]
        return job_of(number, self.changes(values), words)

    def changes(self, values: Mapping[str, Value]) -> list[str]:
        """The searched settings for a reader: ``trials.jsonl`` and the run have all digits."""
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        return [f"{key}={shown[key]}" for key in self.searched]

    def probes(self) -> list[Job]:
        """Jobs that show a mistake before anything is trained: each value once, beside the first of the others.

        Raises:
            UserError: a mistake.
        """
        first = {key: what.ends()[0] for key, what in self.searched.items()}
        others = [{**first, key: value} for key, what in self.searched.items() for value in what.ends()[1:]]
        return [self.job(number, values) for number, values in enumerate([first, *others])]


def space_of(overrides: Sequence[str]) -> Space:
    """The search space of a command.

    Raises:
        ConfigError: nothing is swept, or an interval that is none.
    """
    words: list[tuple[str, str | None]] = []
    searched: dict[str, Choice | Interval] = {}
    for override in parse(overrides):
        key = override.get_key_element()
        if override.is_sweep_override():
            searched[key] = _interval(key, override) or Choice(tuple(dict.fromkeys(swept_values(override))))
            words.append((key, None))
        else:
            words.append((key, override.get_value_element_as_str()))
    if not searched:
        raise ConfigError("sweep.trials needs something to choose, such as head.head_num=1,2,4 or KEY=interval(0,1)")
    return Space(tuple(words), searched)


def _interval(key: str, override: Override) -> Interval | None:
    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return None
    assert sweep.start is not None
    assert sweep.end is not None
    low, high = sweep.start, sweep.end
    if re.search(r"interval\(\s*(start\s*=)?\s*[+-]?\d+\s*,\s*(end\s*=)?\s*[+-]?\d+\s*\)", override.input_line or ""):
        low, high = int(low), int(high)  # Hydra makes them floats
    if unknown := sweep.tags - {"log"}:
        raise ConfigError(f"{key}: there is no tag {min(unknown)!r} of an interval, only log")
    log = "log" in sweep.tags
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        raise ConfigError(
            f"{key}=interval({low:g},{high:g}) must rise" + (" from above 0, as it is tagged log" if log else "")
        )
    return Interval(low, high, log)
