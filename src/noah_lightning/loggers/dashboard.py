"""``noah dashboard``: a W&B workspace and a report about some runs, made from one plan in plain data.

The plan needs neither a network nor the optional package wandb-workspaces, which turns it into what W&B stores. The
workspace and the report have fixed names, so planning them again replaces them.
"""

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from noah_lightning.errors import ConfigError, one_line
from noah_lightning.loggers.sync import wandb_runs

VIEW = "nw-noahlightning-v"  # W&B's own name of the workspace; "nw-…-v" is a form it asks for
TITLE = "NOAH"


@dataclass(frozen=True)
class Panel:
    """A chart: curves over the epochs, or a point for each run with a setting against a result."""

    kind: str  # line | scatter
    title: str
    x: str
    y: str


@dataclass(frozen=True)
class RunOnWandb:
    id: str
    name: str
    folder: str


@dataclass(frozen=True)
class Plan:
    """All that the workspace and the report say."""

    entity: str | None  # None: W&B's default of the account
    project: str
    title: str
    runs: list[RunOnWandb]
    panels: list[Panel]


PANELS = [
    Panel("line", "Top-1 of the validation images (%)", "epoch", "val/top1"),
    Panel("line", "Top-1 of the averaged weights (%)", "epoch", "val/ema_top1"),
    Panel("line", "Training loss", "epoch", "train/loss"),
    Panel("line", "Learning rate", "trainer/global_step", "train/lr"),
    Panel("line", "Images per second", "epoch", "train/images_per_second"),
    Panel("scatter", "Best top-1 against N", "head.head_num", "best/top1"),
    Panel("scatter", "Best top-1 against r", "head.key_ratio", "best/top1"),
]


def dashboard(
    folders: Sequence[Path], entity: str | None = None, project: str | None = None, dry_run: bool = False
) -> str:
    """Make or renew the workspace and the report; returns their addresses, with ``dry_run`` the plan as JSON.

    Args:
        folders: run directories or sweeps.
        entity: None: as the runs have it.
        project: likewise.
        dry_run: only plan, without a network.

    Raises:
        ConfigError: no W&B run there, runs of several projects, no wandb-workspaces, or W&B refuses.
    """
    plan = make_plan(folders, entity, project)
    if dry_run:
        return json.dumps(asdict(plan), indent=2)
    if find_spec("wandb_workspaces") is None:
        raise ConfigError("the dashboard needs wandb-workspaces: pip install 'noah-lightning[dashboard]'")
    return _save(plan)


def make_plan(folders: Sequence[Path], entity: str | None = None, project: str | None = None) -> Plan:
    """What the dashboard of these runs shows.

    Raises:
        ConfigError: no W&B run there, or runs of several projects.
    """
    from noah_lightning.config.schema import WandbLoggerSettings
    from noah_lightning.loggers.wandb_run import run_name
    from noah_lightning.run_dir import RunDir

    runs: dict[str, RunOnWandb] = {}
    places = set()
    for kept in wandb_runs(folders):
        run_dir = kept.parents[1]
        config = RunDir(run_dir).config()
        identity = kept.name.rpartition("-")[2]
        runs[identity] = RunOnWandb(identity, run_name(config), str(run_dir))
        logger = config.logger
        if not isinstance(logger, WandbLoggerSettings):
            raise ConfigError(f"{run_dir} has logger.name={logger.name}, not wandb")
        places.add((entity or logger.entity, project or logger.project))
    if not runs:
        raise ConfigError(f"no W&B run under {', '.join(map(str, folders))}; logger=wandb makes one")
    if len(places) > 1:
        names = sorted("/".join(filter(None, place)) for place in places)
        raise ConfigError(f"the runs are in several projects ({', '.join(names)}); give --entity and --project")
    [(entity, project)] = places
    return Plan(entity, str(project), TITLE, list(runs.values()), PANELS)


def make_workspace(plan: Plan, entity: str) -> Any:
    """The plan as a workspace of wandb-workspaces, not yet saved."""
    import wandb_workspaces.workspaces as ws

    return ws.Workspace(
        entity=entity,
        project=plan.project,
        name=plan.title,
        sections=[ws.Section(name=plan.title, panels=_panels(plan), is_open=True)],
        runset_settings=ws.RunsetSettings(filters=_only_these(plan)),
    )


def make_report(plan: Plan, entity: str) -> Any:
    """The plan as a report of wandb-workspaces, not yet saved."""
    import wandb_workspaces.reports.v2 as wr

    runset = wr.Runset(entity=entity, project=plan.project, name=plan.title, filters=_only_these(plan))
    return wr.Report(
        entity=entity,
        project=plan.project,
        title=plan.title,
        blocks=[
            wr.H1("Runs"),
            wr.UnorderedList(items=[run.name for run in plan.runs]),
            wr.H1("Charts"),
            wr.PanelGrid(runsets=[runset], panels=_panels(plan)),
        ],
    )


def _panels(plan: Plan) -> list[Any]:
    import wandb_workspaces.reports.v2 as wr

    made: list[Any] = []
    for number, panel in enumerate(plan.panels):
        place = wr.Layout(x=number % 3 * 8, y=number // 3 * 6, w=8, h=6)  # three in a row of 24 columns
        if panel.kind == "line":
            made.append(wr.LinePlot(title=panel.title, x=panel.x, y=[panel.y], layout=place))
        else:
            x, y = wr.Config(panel.x), wr.SummaryMetric(panel.y)
            made.append(wr.ScatterPlot(title=panel.title, x=x, y=y, layout=place))
    return made


def _only_these(plan: Plan) -> str:
    return f"Metric('ID') in {[run.id for run in plan.runs]}"


def _save(plan: Plan) -> str:
    import wandb

    try:
        api = wandb.Api()
        entity = plan.entity or str(api.default_entity)
        workspace, report = make_workspace(plan, entity), make_report(plan, entity)
        workspace._internal_name = VIEW
        workspace._internal_id = _saved_workspace(entity, plan.project)
        report.id = _saved_report(api, entity, plan)
        report.save()  # first, as it also makes the project where there is none
        workspace.save()
    except (wandb.Error, OSError, ValueError) as error:
        raise ConfigError(f"W&B: {one_line(error)}; --dry-run needs neither account nor net") from error
    return f"workspace {workspace.url}\nreport    {report.url}"


def _saved_workspace(entity: str, project: str) -> str:
    """The id of the workspace that an earlier call has saved; "" if there is none."""
    from wandb_workspaces.workspaces import internal

    try:
        return str(internal.View.from_name(entity, project, VIEW).id)
    except ValueError:  # no such project or view
        return ""


def _saved_report(api: Any, entity: str, plan: Plan) -> str:
    """Likewise of the report with this title."""
    try:
        return next((str(r.id) for r in api.reports(f"{entity}/{plan.project}") if r.display_name == plan.title), "")
    except ValueError:  # no such project
        return ""
