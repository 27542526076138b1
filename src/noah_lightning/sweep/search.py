"""A sweep that looks for the best settings: Optuna says what to try next, from what the trials before came to."""

import sys
import warnings
from collections import deque
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from noah_lightning.config.processes import processes_per_node
from noah_lightning.errors import ConfigError, UserError, one_line
from noah_lightning.sweep import folder as folders
from noah_lightning.sweep.plan import Job, impossible
from noah_lightning.sweep.source import Source, say
from noah_lightning.sweep.space import Value, space_of
from noah_lightning.sweep.trials import Trials

if TYPE_CHECKING:
    from optuna.samplers import TPESampler


class Search(Source):
    """As many trials as asked for, chosen by Optuna's tree-structured Parzen estimator (TPE) for the highest top-1.

    Number ``n`` of the study is job ``n``: its directory, and its line in ``trials.jsonl``. Settings that have been
    trained are not trained again: a trial that repeats them gets their top-1.

    Args:
        overrides: the command.
        trials: how many jobs, those that fail or cannot be among them.

    Raises:
        UserError: nothing to choose from, a mistake in whatever value, or no Optuna.
    """

    def __init__(self, overrides: Sequence[str], trials: int) -> None:
        try:
            import optuna
        except ImportError:
            raise ConfigError("sweep.trials needs Optuna: pip install 'noah-lightning[search]'") from None
        self._space = space_of(overrides)
        self._distributions = {key: what.distribution() for key, what in self._space.searched.items()}
        probes = self._space.probes()
        impossible(probes)  # for its other mistakes, such as a model that there is not
        optuna.logging.set_verbosity(optuna.logging.WARNING)  # what there is to say, we say
        self._study = optuna.create_study(direction="maximize")
        self._again: deque[int] = deque()
        super().__init__(trials, max(processes_per_node(job.config.trainer) for job in probes))

    def open(self, folder: Path) -> None:
        """Rebuild the study from the trials that were asked for before.

        Raises:
            ConfigError: they are not of this command.
        """
        from optuna.trial import TrialState, create_trial

        self._folder, self._asked = folder, Trials(folder)
        self.total = max(self.total, len(self._asked.values))
        for number, values in enumerate(self._asked.values):
            finished = folders.has_finished(folder / str(number))
            state, top1 = (TrialState.COMPLETE, self._top1(number)) if finished else (TrialState.RUNNING, None)
            (self.before if finished else self._again).append(number)
            try:
                trial = create_trial(state=state, value=top1, params=values, distributions=self._distributions)
            except ValueError as error:
                raise ConfigError(f"{folder} holds trials of another command: {one_line(error)}") from error
            self._study.add_trial(trial)
        if self.before:
            say(f"finished already: {', '.join(map(str, self.before))}")

    def next(self) -> Job | None:
        """A trial that was broken off, or a new one; those that cannot be are told to Optuna at once."""
        while self._again or len(self._asked.values) < self.total:
            number = self._again.popleft() if self._again else self._ask()
            job = self._possible(number, self._asked.values[number])
            if job and not self._known(job):
                return job
        return None

    def tell(self, job: Job, error: str) -> None:
        from optuna.trial import TrialState

        super().tell(job, error)
        if error:
            self._study.tell(job.number, state=TrialState.FAIL)
        else:
            self._study.tell(job.number, self._top1(job.number))

    def best(self) -> str:
        if not self.finished and not self.before:
            return ""
        best = self._study.best_trial
        return f"{best.number}  {' '.join(self._space.changes(best.params))}: {best.value:.2f} %"

    def _ask(self) -> int:
        # Each trial draws from its own number, so a search that was broken off asks what it would have asked.
        self._study.sampler = _sampler(seed=len(self._asked.values))
        return self._asked.add(self._study.ask(self._distributions).params)

    def _possible(self, number: int, values: Mapping[str, Value]) -> Job | None:
        from optuna.trial import TrialState

        name = " ".join(self._space.changes(values))
        try:
            job = self._space.job(number, values)
            reasons = impossible([job])
        except UserError as error:  # values that do not fit together, although each does with the others' first
            self.failed[number] = f"{name}: {error}"
            say(f"failed   {number}  {self.failed[number]}", sys.stderr)
            self._study.tell(number, state=TrialState.FAIL)
            return None
        if reasons:
            self.skip(number, name, reasons[number])
            self._study.tell(number, state=TrialState.PRUNED)  # which TPE takes for worse than any that was trained
            return None
        return job

    def _known(self, job: Job) -> bool:
        """Whether a job with the same settings has finished; TPE asks again for choices that it likes."""
        values = self._asked.values
        for other in range(len(values)):
            if values[other] == values[job.number] and folders.has_finished(self._folder / str(other)):
                say(f"known    {job.number}  {job}: as job {other}")
                self._study.tell(job.number, self._top1(other))
                self.finished += 1
                return True
        return False

    def _top1(self, number: int) -> float:
        from noah_lightning.run_dir import RunDir

        return RunDir(self._folder / str(number)).results().top1


def _sampler(seed: int) -> "TPESampler":
    from optuna.exceptions import ExperimentalWarning
    from optuna.samplers import TPESampler

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        return TPESampler(seed=seed, constant_liar=True)  # jobs that run side by side keep away from each other
