"""A search for the best settings: Optuna suggests what to try next, from what the trials before came to."""

import math
import re
import warnings
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from hydra.core.override_parser.types import IntervalSweep, Override

from noah_lightning.errors import ConfigError, UserError, one_line
from noah_lightning.sweep.folder import TRIALS, Report
from noah_lightning.sweep.plan import HeadCheck, Job

if TYPE_CHECKING:
    from optuna import Study
    from optuna.distributions import BaseDistribution
    from optuna.samplers import TPESampler


class Search:
    """As many trials as asked for, chosen by Optuna's tree-structured Parzen estimator (TPE) for the highest top-1.

    Trial ``n`` of the study is job ``n``. The study is Optuna's journal in the sweep's folder. Settings that have
    been trained are not trained again: a trial that repeats them gets their top-1. A trial whose job failed stays
    open in the study, so that the search avoids what is near it and a resumed sweep can finish it.

    Args:
        compose: makes a job of its number, overrides and changes.
        overrides: the command.
        trials: how many jobs, those that fail or are impossible among them.

    Raises:
        UserError: nothing to choose from, a mistake in any value, or no Optuna.
    """

    def __init__(self, compose: Callable[..., Job], overrides: Sequence[Override], trials: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("sweep.trials needs Optuna: pip install 'noah-lightning[search]'") from None
        optuna.logging.set_verbosity(optuna.logging.WARNING)
        self.total = trials
        self._compose, self._check = compose, HeadCheck()
        self._overrides = {override.get_key_element(): override for override in overrides}
        self._space = {
            key: distribution(key, override)
            for key, override in self._overrides.items()
            if override.is_sweep_override()
        }
        if not self._space:
            raise ConfigError(
                "sweep.trials needs something to choose, such as head.head_num=1,2,4 or KEY=interval(0,1)"
            )
        self._probe()

    def jobs(self, report: Report) -> Iterator[Job]:
        """Trials that were interrupted, then new ones; those that are impossible are told to Optuna at once."""
        from optuna.trial import TrialState

        self._study = _study(report.folder)
        before, again = [], deque[tuple[int, dict[str, Any]]]()
        for trial in self._study.get_trials(deepcopy=False):
            if trial.state == TrialState.PRUNED:
                job = self._job(trial.number, trial.params)
                report.skipped(str(job), self._check(job))
            elif trial.state == TrialState.COMPLETE:
                before.append(trial.number)
            else:
                again.append((trial.number, trial.params))
        report.finished_before(before)
        asked = len(self._study.trials)
        self.total = report.total = max(self.total, asked)
        while again or asked < self.total:
            if again:
                number, values = again.popleft()
            else:
                # Each trial draws from its own number, so an interrupted search asks what it would have asked.
                self._study.sampler = _sampler(seed=asked)
                number, values, asked = asked, self._study.ask(self._space).params, asked + 1
            if to_train := self._to_train(number, values, report):
                yield to_train

    def tell(self, job: Job, top1: float) -> None:
        self._study.tell(job.number, top1)

    def best(self) -> str:
        """The best job and its settings in one line."""
        try:
            best = self._study.best_trial
        except ValueError:  # none has finished
            return ""
        return f"{self._name(best.number, best.params)}: {best.value:.2f} %"

    def _to_train(self, number: int, values: dict[str, Any], report: Report) -> Job | None:
        """The job of a trial, unless it is impossible or its result is known."""
        from optuna.trial import TrialState

        name = self._name(number, values)
        try:
            job = self._job(number, values)
            reason = self._check(job)
        except UserError as error:  # values that do not fit together, although each does with the others' first
            report.failed(name, error)
            return None
        if reason:
            report.skipped(name, reason)
            self._study.tell(number, state=TrialState.PRUNED)  # which TPE takes for worse than any that was trained
            return None
        for known in self._study.get_trials(deepcopy=False, states=(TrialState.COMPLETE,)):
            if known.params == values:  # TPE suggests choices that it likes again
                self._study.tell(number, known.value)
                report.finished(name, f"{known.value:.2f} %, as job {known.number}")
                return None
        return job

    def _job(self, number: int, values: Mapping[str, Any]) -> Job:
        words = [
            f"{key}={values[key] if key in values else override.get_value_element_as_str()}"
            for key, override in self._overrides.items()
        ]
        return self._compose(number, words, self._changes(values))

    def _changes(self, values: Mapping[str, Any]) -> list[str]:
        """The searched settings for a reader; the journal and the run have all digits."""
        shown = {key: f"{value:.4g}" if isinstance(value, float) else value for key, value in values.items()}
        return [f"{key}={shown[key]}" for key in self._space]

    def _name(self, number: int, values: Mapping[str, Any]) -> str:
        return f"{number}  {' '.join(self._changes(values))}"

    def _probe(self) -> None:
        """Show a mistake before anything is trained: each choice and each end once, with the first of the others."""
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
    """What a setting may be: choices without an order, or an interval of numbers, integers if both ends are.

    Raises:
        ConfigError: an interval that does not rise, or an unknown tag.
    """
    from optuna.distributions import CategoricalDistribution, FloatDistribution, IntDistribution

    sweep = override.value()
    if not isinstance(sweep, IntervalSweep):
        return CategoricalDistribution(tuple(dict.fromkeys(override.sweep_string_iterator())))
    low, high = sweep.start, sweep.end
    assert low is not None
    assert high is not None
    if unknown := sweep.tags - {"log"}:
        raise ConfigError(f"{key}: {min(unknown)!r} is not a tag of an interval, only log is")
    log = "log" in sweep.tags
    if not -math.inf < low < high < math.inf or (log and low <= 0):
        above = " from above 0, as it is tagged log" if log else ""
        raise ConfigError(f"{key}=interval({low:g},{high:g}) must rise{above}")
    if re.search(r"interval\(\s*(start\s*=)?\s*[+-]?\d+\s*,\s*(end\s*=)?\s*[+-]?\d+\s*\)", override.input_line or ""):
        return IntDistribution(int(low), int(high), log=log)  # Hydra makes them floats
    return FloatDistribution(low, high, log=log)


def _study(folder: Path) -> "Study":
    """The study in the folder of a sweep, new or not."""
    import optuna
    from optuna.storages import JournalStorage
    from optuna.storages.journal import JournalFileBackend

    path = folder / TRIALS
    try:
        storage = JournalStorage(JournalFileBackend(str(path)))
        return optuna.create_study(storage=storage, study_name="sweep", direction="maximize", load_if_exists=True)
    except (OSError, LookupError, ValueError, TypeError) as error:
        raise ConfigError(f"{path} is not a journal of Optuna's: {one_line(error)}") from error


def _sampler(seed: int) -> "TPESampler":
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, constant_liar=True)  # jobs that run at the same time keep away from each other
