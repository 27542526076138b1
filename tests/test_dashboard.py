"""The dashboard: a plan from the runs' folders, and W&B's workspace and report from the plan."""

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from noah_lightning.config.compose import compose_config
from noah_lightning.errors import ConfigError
from noah_lightning.loggers import dashboard as dashboard_module
from noah_lightning.loggers.dashboard import PANELS, VIEW, build, dashboard, make_plan, wandb_runs
from noah_lightning.run_dir import RunDir


def make_run(run_dir: Path, identity: str, *overrides: str) -> None:
    """A run directory with its configuration and what W&B keeps."""
    RunDir(run_dir).claim(compose_config(["experiment=demo", "logger=wandb", *overrides]))
    kept = run_dir / "wandb" / f"offline-run-20260101_120000-{identity}"
    kept.mkdir(parents=True)
    (kept / f"run-{identity}.wandb").touch()


@pytest.fixture
def sweep(tmp_path: Path) -> Path:
    """Two jobs."""
    make_run(tmp_path / "sweep/0", "aaaa", "head=noah", "head.head_num=2")
    make_run(tmp_path / "sweep/1", "bbbb", "head=gap", "seed=1")
    return tmp_path / "sweep"


def test_a_dry_run_is_json_with_the_runs_and_the_panels(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(dashboard_module, "find_spec", lambda _: None)  # the package is not needed for it
    plan = json.loads(dashboard([sweep], dry_run=True))
    assert (plan["entity"], plan["project"]) == (None, "noah")
    assert [(run["id"], run["name"].split("-", 1)[1]) for run in plan["runs"]] == [
        ("aaaa", "noah-N2-r0.5-seed0"),
        ("bbbb", "gap-seed1"),
    ]
    shown = {(panel["x"], panel["y"]) for panel in plan["panels"]}
    assert {y for _, y in shown} >= {
        "val/top1",
        "val/ema_top1",
        "train/loss",
        "train/lr",
        "train/images_per_second",
    }
    assert {("head.head_num", "best/top1"), ("head.key_ratio", "best/top1")} <= shown


def test_the_command_line_names_another_place(sweep: Path) -> None:
    plan = make_plan([sweep], entity="us", project="heads")
    assert (plan.entity, plan.project) == ("us", "heads")


def test_runs_of_several_projects_need_one_to_be_named(sweep: Path) -> None:
    make_run(sweep / "2", "cccc", "logger.project=other", "logger.entity=us")
    with pytest.raises(ConfigError, match=r"several projects \(noah, us/other\); give --entity and --project"):
        make_plan([sweep])
    assert len(make_plan([sweep], "us", "other").runs) == 3


def test_the_runs_of_a_folder_oldest_first(sweep: Path) -> None:
    """One that was resumed, one that was online; not what a sweep has set aside, nor W&B's own links."""
    (sweep / "2" / "wandb").mkdir(parents=True)
    for kept in (
        "0/wandb/offline-run-20260101_110000-aaaa",
        "2/wandb/run-20260101_120500-cccc",
        ".unfinished/1-1/wandb/offline-run-20260101_110000-bbbb",
    ):
        (sweep / kept).mkdir(parents=True)
        (sweep / kept / f"run-{kept.rpartition('-')[2]}.wandb").touch()
    (sweep / "0/wandb/latest-run").symlink_to("offline-run-20260101_120000-aaaa")
    names = [
        "offline-run-20260101_110000-aaaa",
        "offline-run-20260101_120000-aaaa",
        "offline-run-20260101_120000-bbbb",
        "run-20260101_120500-cccc",
    ]
    assert [run.name for run in wandb_runs([sweep])] == names
    assert sorted(run.name for run in wandb_runs([sweep / "1", sweep])) == sorted(names), "each once"
    assert len(wandb_runs([sweep / ".unfinished" / "1-1"])) == 1, "found where it is named"
    with pytest.raises(ConfigError, match="nowhere is not a folder"):
        wandb_runs([sweep / "nowhere"])


def test_without_runs_or_without_the_package_it_is_one_line(
    sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigError, match=r"no W&B run in .*empty; logger=wandb creates one"):
        dashboard([tmp_path / "empty"], dry_run=True)
    monkeypatch.setattr(dashboard_module, "find_spec", lambda _: None)
    with pytest.raises(ConfigError, match=r"needs wandb-workspaces: pip install 'noah-lightning\[dashboard\]'"):
        dashboard([sweep])


# --- with wandb-workspaces


def test_the_workspace_shows_the_planned_panels_of_the_planned_runs(sweep: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    workspace, _ = build(make_plan([sweep]), "us")
    spec = json.loads(workspace._to_model().spec.model_dump_json(by_alias=True, exclude_none=True))["section"]
    [section] = spec["panelBankConfig"]["sections"]
    shown = [panel["config"] for panel in section["panels"]]
    assert [config["chartTitle"] for config in shown] == [panel.title for panel in PANELS]
    assert shown[0]["metrics"] == ["val/top1"]
    assert (shown[5]["xAxis"], shown[5]["yAxis"]) == ("config:head.value.head_num", "summary:best/top1")
    [only] = spec["runSets"][0]["filters"]["filters"]
    assert only["value"] == ["aaaa", "bbbb"]


def test_the_report_names_the_runs(sweep: Path) -> None:
    pytest.importorskip("wandb_workspaces")
    plan = make_plan([sweep])
    _, report = build(plan, "us")
    _, names, _, grid = report.blocks
    assert names.items == [run["name"] for run in plan.runs]
    assert [panel.title for panel in grid.panels] == [panel.title for panel in PANELS]


def test_saving_again_replaces_what_was_saved(sweep: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B itself is replaced by a shelf: what comes without an id is new on it."""
    workspaces = pytest.importorskip("wandb_workspaces.workspaces")
    reports = pytest.importorskip("wandb_workspaces.reports.v2")
    shelf: dict[str, Any] = {}

    def put(kind: str, identity: str, thing: Any) -> str:
        identity = identity or f"{kind}-{len(shelf)}"
        shelf[identity] = thing
        return identity

    def save_workspace(self: Any) -> None:
        assert self._internal_name == VIEW
        self._internal_id = put("workspace", self._internal_id, self)

    def save_report(self: Any) -> None:
        self.id = put("report", self.id, self)

    def find_workspace(entity: str, project: str, name: str) -> Any:
        found = [key for key, it in shelf.items() if getattr(it, "_internal_name", "") == name]
        if not found:
            raise ValueError("not found")
        return SimpleNamespace(id=found[0])

    def find_reports(path: str) -> list[Any]:
        assert path == "us/noah"
        return [SimpleNamespace(id=key, display_name=it.title) for key, it in shelf.items() if hasattr(it, "title")]

    monkeypatch.setattr("wandb.Api", lambda: SimpleNamespace(default_entity="us", reports=find_reports))
    monkeypatch.setattr(workspaces.Workspace, "save", save_workspace)
    monkeypatch.setattr(workspaces.Workspace, "url", property(lambda self: self._internal_id))
    monkeypatch.setattr(workspaces.internal.View, "from_name", find_workspace)
    monkeypatch.setattr(reports.Report, "save", save_report)
    monkeypatch.setattr(reports.Report, "url", property(lambda self: self.id))
    first = dashboard([sweep])
    assert len(shelf) == 2
    assert dashboard([sweep / "1"]) == first
    assert len(shelf) == 2
    [report] = [it for it in shelf.values() if hasattr(it, "title")]
    assert len(report.blocks[1].items) == 1, "the second call's run"


def test_without_an_account_it_is_one_line(sweep: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("wandb_workspaces")
    monkeypatch.delenv("WANDB_API_KEY", raising=False)
    monkeypatch.setenv("HOME", str(tmp_path))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    with pytest.raises(ConfigError, match=r"W&B: .*--dry-run needs neither an account nor a network"):
        dashboard([sweep])
