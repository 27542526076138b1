"""W&B workspace and report that compare runs.

Their contents are planned as plain data, without a network. The optional package wandb-workspaces turns the plan into
what W&B stores. Both have fixed names, so building them again replaces them.
"""

import json
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from noah_lightning.errors import ConfigError

VIEW = "nw-noahlightning-v"  # W&B's internal name of the workspace, which must have the form "nw-…-v"
TITLE = "NOAH"


@dataclass(frozen=True)
class Panel:
    """A chart: curves over epochs (``line``), or one point per run (``scatter``)."""

    kind: str
    title: str
    x: str
    y: str


PANELS = (
    Panel("line", "Top-1 of the validation images (%)", "epoch", "val/top1"),
    Panel("line", "Top-1 of the averaged weights (%)", "epoch", "val/ema_top1"),
    Panel("line", "Training loss", "epoch", "train/loss"),
    Panel("line", "Learning rate", "trainer/global_step", "train/lr"),
    Panel("line", "Images per second", "epoch", "train/images_per_second"),
    Panel("scatter", "Best top-1 against N", "head.head_num", "best/top1"),
    Panel("scatter", "Best top-1 against r", "head.key_ratio", "best/top1"),
)


@dataclass(frozen=True)
class Plan:
    """Contents of the workspace and the report."""

    entity: str | None  # None: W&B's default of the account
    project: str
    runs: list[dict[str, str]]  # "id", "name" and "folder"
    panels: Sequence[Panel] = PANELS


def dashboard(
    folders: Sequence[Path], entity: str | None = None, project: str | None = None, dry_run: bool = False
) -> str:
    """Build or update the workspace and the report; returns their URLs, with ``dry_run`` the plan as JSON.

    Args:
        folders: run directories, sweeps, or folders of them.
        entity, project: default to those of the runs.
        dry_run: only plan, without a network.

    Raises:
        ConfigError: no W&B runs, runs of several projects, wandb-workspaces is not installed, or an error of W&B.
    """
    plan = make_plan(folders, entity, project)
    if dry_run:
        return json.dumps(asdict(plan), indent=2)
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("the dashboard needs wandb-workspaces: pip install 'noah-lightning[dashboard]'")
    return _save(plan)


def make_plan(folders: Sequence[Path], entity: str | None = None, project: str | None = None) -> Plan:
    """Contents of the dashboard; arguments and errors as for :func:`dashboard`."""
    from noah_lightning.config.choices import WandbLoggerSettings
    from noah_lightning.loggers.factory import run_name
    from noah_lightning.run_dir import RunDir

    runs: dict[str, dict[str, str]] = {}  # by id: a resumed run has several W&B folders
    places = set()
    for wandb_folder in wandb_runs(folders):
        run_dir = wandb_folder.parents[1]
        config = RunDir(run_dir).config()
        logger = config.logger
        if not isinstance(logger, WandbLoggerSettings):
            raise ConfigError(f"{run_dir} has logger.name={logger.name}, not wandb")
        run_id = wandb_folder.name.rpartition("-")[2]
        runs[run_id] = {"id": run_id, "name": run_name(config), "folder": str(run_dir)}
        places.add((entity or logger.entity, project or logger.project))
    if not runs:
        raise ConfigError(f"no W&B run in {', '.join(map(str, folders))}; logger=wandb creates one")
    if len(places) > 1:
        names = sorted("/".join(filter(None, place)) for place in places)
        raise ConfigError(f"the runs are in several projects ({', '.join(names)}); give --entity and --project")
    [(entity, project)] = places
    return Plan(entity, str(project), list(runs.values()))


def wandb_runs(folders: Sequence[Path]) -> list[Path]:
    """W&B's folder of each run in ``folders``, oldest first, except unfinished attempts that a sweep has moved.

    Raises:
        ConfigError: one of ``folders`` is not a folder.
    """
    from noah_lightning.run_dir import ASIDE

    found: dict[Path, None] = {}
    for folder in folders:
        if not folder.is_dir():
            raise ConfigError(f"{folder} is not a folder")
        files = folder.rglob("wandb/*run-*/run-*.wandb")
        runs = {file.parent for file in files if ASIDE not in file.relative_to(folder).parts}
        found |= dict.fromkeys(run.resolve() for run in sorted(runs) if not run.is_symlink())  # latest-run
    return list(found)


def build(plan: Plan, entity: str) -> tuple[Any, Any]:
    """The plan as a workspace and a report of wandb-workspaces, not yet saved."""
    import wandb_workspaces.reports.v2 as wr
    import wandb_workspaces.workspaces as ws

    panels: list[Any] = []
    for number, panel in enumerate(plan.panels):
        common = {"title": panel.title, "layout": wr.Layout(x=number % 3 * 8, y=number // 3 * 6, w=8, h=6)}
        if panel.kind == "line":
            panels.append(wr.LinePlot(x=panel.x, y=[panel.y], **common))
        else:
            panels.append(wr.ScatterPlot(x=wr.Config(panel.x), y=wr.SummaryMetric(panel.y), **common))
    place = {"entity": entity, "project": plan.project}
    only_these = f"Metric('ID') in {[run['id'] for run in plan.runs]}"
    workspace = ws.Workspace(
        **place,
        name=TITLE,
        sections=[ws.Section(name=TITLE, panels=panels, is_open=True)],
        runset_settings=ws.RunsetSettings(filters=only_these),
    )
    blocks = [
        wr.H1("Runs"),
        wr.UnorderedList(items=[run["name"] for run in plan.runs]),
        wr.H1("Charts"),
        wr.PanelGrid(runsets=[wr.Runset(**place, name=TITLE, filters=only_these)], panels=panels),
    ]
    return workspace, wr.Report(**place, title=TITLE, blocks=blocks)


def _save(plan: Plan) -> str:
    import wandb
    from wandb_workspaces.workspaces import internal

    from noah_lightning.loggers.factory import refused

    try:
        api = wandb.Api()
        entity = plan.entity or str(api.default_entity)
        workspace, report = build(plan, entity)
        workspace._internal_name = VIEW
        # Ids saved by an earlier call. W&B raises a ValueError if the project or view does not exist.
        with suppress(ValueError):
            workspace._internal_id = str(internal.View.from_name(entity, plan.project, VIEW).id)
        with suppress(ValueError):
            saved = [old.id for old in api.reports(f"{entity}/{plan.project}") if old.display_name == TITLE]
            report.id = str(saved[0]) if saved else ""
        report.save()  # first, because it also creates the project
        workspace.save()
    except (wandb.Error, OSError, ValueError) as error:
        raise refused(error, "--dry-run needs neither an account nor a network") from error
    return f"workspace {workspace.url}\nreport    {report.url}"
