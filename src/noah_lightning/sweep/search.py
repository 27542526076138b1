"""Hyperparameter search with Optuna, as a source of the jobs of a sweep."""

import math
import re
import warnings
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from noah_lightning.errors import ConfigError, UserError, one_line
from noah_lightning.sweep.folder import TRIALS, Report
from noah_lightning.sweep.plan import Compose, HeadCheck, Job

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution


class Search:
    """Search for the highest top-1 by Optuna's tree-structured Parzen estimator (TPE).

    Trial ``n`` of the study is job ``n``. The study is stored in Optuna's journal in the sweep's folder. A trial that
    repeats the settings of another one gets its top-1 without training. A trial whose job failed stays open in the
    study, so that the search avoids similar settings and a resumed sweep can finish it. Both count, as do impossible
    trials.

    Raises:
        UserError: there is nothing to search, a value is invalid, or Optuna is not installed.
    """

    def __init__(self, compose: Compose, overrides: Sequence[Override], trials: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("sweep.trials needs Optuna: pip install 'noah-lightning[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.total = trials
        self._compose, self._check = compose, HeadCheck()
        self._overrides = {override.get_key_element(): override for override in overrides}
        swept = {key: override for key, override in self._overrides.items() if override.is_sweep_override()}
        if not swept:
            raise ConfigError(
                "sweep.trials needs a setting to search, such as head.head_num=1,2,4 or KEY=interval(0,1)"
            )
        self._space = {key: distribution(key, override) for key, override in swept.items()}
        self._probe()

    def jobs(self, report: Report) -> Iterator[Job]:
        """Jobs of the trials that have not finished, then of new ones; those that need no training are reported."""
        from optuna.exceptions import ExperimentalWarning
        from optuna.samplers import TPESampler
        from optuna.trial import TrialState

        self._study = study = _study(report.folder)
        known = study.get_trials(deepcopy=False)
        report.finished_before([trial.number for trial in known if trial.state == TrialState.COMPLETE])
        self.total = report.total = max(self.total, len(known))
        for number in range(self.total):
            if number < len(known):
                values = known[number].params
                if known[number].state == TrialState.COMPLETE:
                    continue
            else:
                with warnings.catch_warnings():
                    warnings.simplefilter("ignore", ExperimentalWarning)
                    # A seed for each trial, so a resumed search draws the same; parallel jobs avoid similar settings.
                    study.sampler = TPESampler(seed=number, constant_liar=True)
                values = study.ask(self._space).params
            name = f"{number}  {' '.join(self._changes(values))}"
            try:
                job = self._job(number, values)
                impossible = self._check(job)
            except UserError as error:  # an invalid combination of values that are valid by themselves
                report.failed(name, error)
                continue
            complete = study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,))
            same = next((trial for trial in complete if trial.params == values), None)
            if impossible:
                report.skipped(name, impossible)
                # TPE ranks it below all trained ones.
                study.tell(number, state=TrialState.PRUNED, skip_if_finished=True)
            elif same:  # TPE may repeat good choices
                study.tell(number, same.value)
                report.finished(name, f"{same.value:.2f} %, as job {same.number}")
            else:
                yield job

    def tell(self, job: Job, top1: float) -> None:
        self._study.tell(job.number, top1, skip_if_finished=True)

    def best(self) -> str:
        """Best job, its settings and its top-1 in one line; "" if no job has finished."""
        try:
            best = self._study.best_trial
        except ValueError:  # none has finished
            return ""
        return f"{best.number}  {' '.join(self._changes(best.params))}: {best.value:.2f} %"

    def _job(self, number: int, values: Mapping[str, Any]) -> Job:
        words = [
            f"{key}={values[key] if key in values else override.get_value_element_as_str()}"
            for key, override in self._overrides.items()
        ]
        return self._compose(number, words, self._changes(values))

    def _changes(self, values: Mapping[str, Any]) -> list[str]:
        """The searched settings, rounded for display."""
        return [
            f"{key}={values[key]:.4g}" if isinstance(values[key], float) else f"{key}={values[key]}"
            for key in self._space
        ]

    def _probe(self) -> None:
        """Find mistakes before training: check each choice and each end of an interval once."""
        from optuna.distributions import CategoricalDistribution

        ends: dict[str, tuple[Any, ...]] = {
            key: what.choices if isinstance(what, CategoricalDistribution) else (what.low, what.high)  # type: ignore[attr-defined]
            for key, what in self._space.items()
        }
        first = {key: values[0] for key, values in ends.items()}
        others = [{**first, key: value} for key, values in ends.items() for value in values[1:]]
        for number, values in enumerate([first, *others]):
            self._check(self._job(number, values))


def distribution(key: str, override: Override) -> "BaseDistribution":
    """Optuna's distribution of a setting: unordered choices, or an interval, of integers if both ends are.

    Raises:
        ConfigError: an invalid interval, or an unknown tag.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if unknown := sweep.tags - {"log"}:
        raise ConfigError(f"{key}: {min(unknown)!r} is not a tag of an interval; the only one is log")
    log = "log" in sweep.tags
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        positive = " and be above 0, because of its tag log" if log else ""
        raise ConfigError(f"{key}=interval({low:g},{high:g}) must increase{positive}")
    if re.search(r"interval\(\s*(start\s*=)?\s*[+-]?\d+\s*,\s*(end\s*=)?\s*[+-]?\d+\s*\)", override.input_line or ""):
        return IntDistribution(int(low), int(high), log=log)  # Hydra converts them to floats
    return FloatDistribution(low, high, log=log)


def _study(folder: Path) -> "Study":
    """Create or load the study in the folder of a sweep."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / TRIALS
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a journal of Optuna: {one_line(error)}") from error
