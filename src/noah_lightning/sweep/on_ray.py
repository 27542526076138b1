"""``hydra/launcher=ray``: the jobs of a sweep are tasks of a Ray cluster, which schedules them over its machines."""

from collections.abc import Iterator
from typing import Any

from noah_lightning.errors import ConfigError, RunFailed, one_line
from noah_lightning.sweep.launchers import Launcher, Outcome, Results, as_return, gpus_needed, run_payload
from noah_lightning.sweep.plan import Job


class RayLauncher(Launcher):
    """Gives each job a process of its own with as many GPUs as it has devices; Ray says where and when.

    Args:
        options: as ``RayConf`` in ``hydra_plugins`` describes them.
    """

    def __init__(self, **options: Any) -> None:
        self.options = options

    def run(self, jobs: Iterator[Job]) -> Results:
        """As :meth:`Launcher.run`.

        Raises:
            ConfigError: Ray is not installed, or there is no such cluster.
        """
        try:
            import ray
        except ImportError:
            raise ConfigError("hydra/launcher=ray needs Ray: pip install 'noah-lightning[ray]'") from None
        try:
            ray.init(self.options["address"], log_to_driver=False, logging_level="ERROR", **self.options["init"])
        except (ConnectionError, ValueError, TypeError, RuntimeError) as error:
            raise ConfigError(f"hydra/launcher=ray: {one_line(error)}") from error
        on_gpus = ray.cluster_resources().get("GPU", 0) > 0
        running: dict[Any, Job] = {}
        try:
            for job in jobs:
                gpus = gpus_needed(job) if on_gpus and job.config.trainer.accelerator != "cpu" else 0
                cpus = self.options["cpus_per_device"] * gpus_needed(job)
                # A worker that ends with its job: nothing of one reaches the next.
                task = ray.remote(num_cpus=cpus, num_gpus=gpus, max_calls=1, max_retries=0)(_work)
                self.announce(job, "submitted")
                running[task.remote(self.payload(job))] = job
            while running:
                [ended], _ = ray.wait(list(running))
                yield running[ended], as_return(running.pop(ended), _outcome(ended))
        finally:
            for task in running:  # stopped or interrupted: as Ctrl-C would, so that each is saved
                ray.cancel(task)
            ray.wait(list(running), num_returns=len(running)) if running else None
            ray.shutdown()


def _work(payload: bytes) -> Outcome:
    try:
        return run_payload(payload)
    except KeyboardInterrupt:
        return RunFailed("interrupted")


def _outcome(task: Any) -> Outcome:
    import ray

    try:
        outcome: Outcome = ray.get(task)
    except ray.exceptions.RayError as error:
        return RunFailed(one_line(error))
    return outcome
