"""Hydra's sweeper: checks every job before training starts, runs grids and searches, and resumes them."""

from collections.abc import Iterator, Sequence
from contextlib import closing
from itertools import islice
from pathlib import Path
from typing import Any

import yaml
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig, OmegaConf

from noah_lightning.config.parsing import parse
from noah_lightning.distributed.environment import started_from_outside
from noah_lightning.errors import ConfigError, count
from noah_lightning.sweep.folder import Report, begin, find, say
from noah_lightning.sweep.job import has_finished
from noah_lightning.sweep.launchers import Launcher, LocalLauncher, Outcomes, stoppable
from noah_lightning.sweep.plan import Compose, HeadCheck, Job, SweepSettings, compose_job
from noah_lightning.sweep.search import Search


class Grid:
    """Grid of all combinations of the values in a command, in order.

    Raises:
        UserError: a mistake in any job, or no head fits its model.
    """

    def __init__(self, compose: Compose, overrides: Sequence[Override]) -> None:
        last = {override.get_key_element(): override for override in overrides}
        for key, override in last.items():
            if override.is_interval_sweep():
                raise ConfigError(f"{key}=interval(…) cannot be enumerated; add sweep.trials=N to search it")
        combinations = BasicSweeper.split_arguments(list(overrides), max_batch_size=None)[0]
        swept = {key for key, override in last.items() if override.is_sweep_override()}
        self.planned = [
            compose(number, words, [word for word in words if word.partition("=")[0] in swept])
            for number, words in enumerate(combinations)
        ]
        self.total = len(self.planned)
        check = HeadCheck()
        self._impossible = {job.number: reason for job in self.planned if (reason := check(job))}
        if len(self._impossible) == self.total:
            raise ConfigError(f"no job of the sweep is possible: {self._impossible[0]}")

    def jobs(self, report: Report) -> Iterator[Job]:
        """Jobs that are possible and have not finished."""
        for number, reason in self._impossible.items():
            report.skipped(self.planned[number], reason)
        before = [job.number for job in self.planned if has_finished(job.run_dir)]
        report.finished_before(before)
        yield from (job for job in self.planned if job.number not in {*before, *self._impossible})

    def tell(self, job: Job, top1: float) -> None:
        """Do nothing; the jobs of a grid do not depend on results."""

    def best(self) -> str:
        return ""


class Sweeper(BasicSweeper):
    """Sweeper that skips jobs whose head does not fit, and continues after failed jobs; see ``SweeperConf``."""

    hydra_context: HydraContext
    config: DictConfig

    def __init__(self, max_batch_size: int | None, params: dict[str, str] | None, show: bool) -> None:
        super().__init__(max_batch_size, params)
        self._show = show

    def setup(self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig) -> None:
        if started_from_outside():
            raise ConfigError("a sweep starts its own processes: run it without torchrun or srun")
        settings: Any = OmegaConf.to_container(config.sweep, resolve=True)
        self._settings = parse(SweepSettings, settings, "sweep")
        given = config.hydra.overrides
        own = [word for word in given.task if not word.startswith(("sweep.", "sweep="))]
        self._command = [*self._parse_config(), *own]
        if self._settings.resume:
            words = (*given.task, *given.hydra)
            at = any(word.startswith(("sweep.dir=", "hydra.sweep.dir=")) for word in words)
            path = Path(config.hydra.sweep.dir) if at else None
            folder = find(path, self._command, search=bool(self._settings.trials))
            if not at:
                given.hydra.append(f"hydra.sweep.dir={folder}")  # for the jobs, which are composed again
                config.hydra.sweep.dir = str(folder)
        super().setup(hydra_context=hydra_context, task_function=task_function, config=config)

    def sweep(self, arguments: list[str]) -> None:
        """Run all jobs.

        Raises:
            UserError: a mistake in the command, before anything is trained.
            RunFailed: jobs failed; each failure has been reported.
            Stopped: by SIGTERM or SIGUSR1, after running jobs were saved.
        """
        parser = OverridesParser.create(config_loader=self.hydra_context.config_loader)
        overrides = parser.parse_overrides([*self._parse_config(), *arguments])
        trials = self._settings.trials
        source = Search(self._compose, overrides, trials) if trials else Grid(self._compose, overrides)
        if self._show:
            if not isinstance(source, Grid):
                raise ConfigError("the jobs of a search are not known in advance: remove sweep.trials")
            for job in source.planned:
                say(f"--- # {job}")
                print(yaml.safe_dump(job.config.model_dump(), sort_keys=False).rstrip(), flush=True)
            return
        folder = Path(self.config.hydra.sweep.dir)
        if not self._settings.resume:
            begin(folder, self._command)
        report = Report(folder, source.total)
        say(f"sweep    {count(source.total, 'job')}, {folder}")
        advice = getattr(self.launcher, "advice", Launcher.advice)
        with stoppable(advice), closing(self._outcomes(source.jobs(report))) as outcomes:
            for job, outcome in outcomes:
                if isinstance(outcome, Exception):
                    report.failed(job, outcome)
                else:
                    source.tell(job, outcome)
                    report.finished(job, f"{outcome:.2f} %")
        report.conclude(source.best())

    def _compose(self, number: int, overrides: Sequence[str], changes: Sequence[str]) -> Job:
        sweep: Any = OmegaConf.to_container(self.config.hydra.sweep)
        if sweep["subdir"] == "${hydra.job.num}":
            overrides = [*overrides, f"hydra.sweep.subdir={number}"]  # launchers count within each batch
        return compose_job(self.hydra_context.config_loader, self.config, number, overrides, changes)

    def _outcomes(self, jobs: Iterator[Job]) -> Outcomes:
        """Outcomes of the jobs, each as soon as the launcher returns it."""
        launcher: Any = self.launcher
        if isinstance(launcher, LocalLauncher):  # takes a job whenever it can start one
            yield from launcher.run(jobs)
            return
        at_a_time = (self._settings.jobs or 1) if self._settings.trials else self.max_batch_size
        while batch := list(islice(jobs, at_a_time)):
            if isinstance(launcher, Launcher):
                yield from launcher.run(iter(batch))
            else:
                returns = launcher.launch([job.overrides for job in batch], initial_job_idx=batch[0].number)
                yield from zip(batch, [each._return_value for each in returns], strict=True)
