"""A comparison of runs in MLflow's UI: which runs it shows, and which curves stand first.

MLflow's UI keeps a shared view (its button "Share") as a tag of an experiment: JSON with a filter
of runs, charts and sections. A link that names the tag's key opens that view. The fields below are
those of MLflow 3.17; what the JSON leaves out has MLflow's defaults.
"""

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass
from difflib import get_close_matches
from typing import Any

from smt.config.experiments import Run
from smt.config.metrics import HEADLINES
from smt.config.project import Project
from smt.errors import UserError
from smt.tracking.client import RemoteRun, TrackingClient, runs_url

VIEW_TAG = "mlflow.sharedViewState."
"""Prefix of the tag of an MLflow experiment that holds a shared view."""

MAX_VIEW_LENGTH = 20_000
"""Characters that MLflow accepts in the value of a tag of an experiment."""

TABLE_TAG = "smt.table."
"""Prefix of the tags of a run that say in which tables it stands."""

_SECTION = "comparison"
_COLLAPSED = ("train", "eval", "evaluation", "final", "Model metrics", "System metrics")
"""Sections of the other metrics, one a prefix of their keys; MLflow names the last two itself."""


@dataclass(frozen=True)
class Comparison:
    """Runs that are shown beside each other."""

    key: str
    """By which the link names the view."""
    title: str
    search: str
    """MLflow's filter of runs. That of a table finds runs that begin later as well."""
    runs: tuple[RemoteRun, ...]
    """Those that are in MLflow now; at least one."""
    metrics: tuple[str, ...]
    """Whose curves stand first, by their keys in MLflow."""

    def publish(self, client: TrackingClient, address: str) -> str:
        """Write the view to MLflow; return the link that opens it at `address`.

        Raises:
            UserError: MLflow does not answer, or the runs are more than a view can name.
        """
        experiments = list(dict.fromkeys(run.experiment_id for run in self.runs))
        view = json.dumps(self._state(), separators=(",", ":"))
        if len(view) > MAX_VIEW_LENGTH:
            raise UserError(
                f"smt ui: {len(self.runs)} runs are more than a view of MLflow can name; name "
                "fewer, or a table"
            )
        # MLflow looks for the tag of a link to several experiments at the first of them.
        client.set_experiment_tag(experiments[0], VIEW_TAG + self.key, view)
        return f"{runs_url(address, experiments)}&viewStateShareKey={self.key}"

    def _state(self) -> dict[str, Any]:
        return {
            "searchFilter": self.search,
            "runsHiddenMode": "SHOW_ALL",  # by default the curves of ten runs
            "compareRunCharts": [_line_chart(metric) for metric in self.metrics],
            "compareRunSections": [
                {**_section(_SECTION, self.title, is_open=True), "columns": 2},
                *(_section(name, name, is_open=False) for name in _COLLAPSED),
            ],
            "isAccordionReordered": True,  # else MLflow sorts the sections by name
        }


def _line_chart(metric: str) -> dict[str, Any]:
    return {
        "uuid": metric,
        "type": "LINE",
        "metricSectionId": _SECTION,
        "metricKey": metric,
        "selectedMetricKeys": [metric],
        "displayName": metric,
        "deleted": False,
        "isGenerated": False,
        "runsCountToCompare": 100,
        "lineSmoothness": 0,
        "xAxisKey": "step",
        "xAxisScaleType": "linear",
        "scaleType": "linear",
        "yAxisKey": "metric",
        "yAxisExpressions": [],
        "range": {},
        "useGlobalXaxisKey": True,
        "useGlobalLineSmoothing": True,
    }


def _section(key: str, title: str, *, is_open: bool) -> dict[str, Any]:
    return {
        "uuid": key, "name": title, "display": is_open, "isReordered": True, "deleted": False,
        "isGenerated": False,
    }  # fmt: skip


def default(project: Project, client: TrackingClient) -> Comparison | None:
    """Return the comparison of the first table that has a run in MLflow; None without any run."""
    remote = client.runs()
    return next(filter(None, (_of_table(project, name, remote) for name in project.tables)), None)


def named(project: Project, client: TrackingClient, names: Sequence[str]) -> Comparison:
    """Return the comparison of one table's runs, or of the runs with these valid names.

    Raises:
        UserError: none of a table's runs, or not all of these, are in MLflow yet.
    """
    remote = client.runs()
    if names[0] in project.tables:
        comparison = _of_table(project, names[0], remote)
        if comparison is None:
            raise UserError(_not_sent(f"run of table {names[0]}", client))
        return comparison
    runs = _runs_by_name(project)
    chosen = list(dict.fromkeys(run for name in names for run in runs[name]))
    return _of_runs(project, chosen, remote, client)


def require_names(project: Project, names: Sequence[str]) -> None:
    """Check that names are one table, or runs: EXPERIMENT (all seeds) or EXPERIMENT-seedN.

    Raises:
        UserError: they are not; it has the nearest valid names.
    """
    runs, is_alone = _runs_by_name(project), len(names) == 1
    for name in names:
        if name not in runs and not (name in project.tables and is_alone):
            raise UserError(_unknown(project, runs, name, is_alone=is_alone))


def _runs_by_name(project: Project) -> dict[str, list[Run]]:
    runs: dict[str, list[Run]] = {}
    for run in project.runs:
        runs.setdefault(run.experiment, []).append(run)
        runs[str(run)] = [run]
    return runs


def _unknown(project: Project, runs: dict[str, list[Run]], name: str, *, is_alone: bool) -> str:
    if name in project.tables:
        return f"smt ui: {name} is a table, and is shown alone: smt ui {name}; or name runs only"
    tables = list(project.tables) if is_alone else []
    near = get_close_matches(name, [*tables, *runs])
    valid = f"did you mean {' or '.join(near)}?"
    if not near:  # every run would be a screenful
        table = f"a table ({', '.join(tables)}), or " if tables else ""
        valid = f"valid: {table}runs of params/experiments.yaml, as in {next(reversed(runs))}"
    return f"smt ui: no {'table or ' if tables else ''}run {name!r}; {valid}"


def _not_sent(what: str, client: TrackingClient) -> str:
    scale = client.family.removeprefix("smt-")
    return (
        f"smt ui: no {what} is in MLflow at {scale} scale; smt status --scale {scale} says which "
        f"have begun, smt sync --scale {scale} sends them"
    )


def _of_table(project: Project, name: str, remote: Sequence[RemoteRun]) -> Comparison | None:
    tag = TABLE_TAG + name
    runs = tuple(run for run in remote if run.tags.get(tag) and run.status != "KILLED")
    if not runs:
        return None
    # A run that was started again with other params is KILLED, and not part of the table.
    search = f"tags.`{tag}` = 'true' AND attributes.status != 'KILLED'"
    table = project.tables[name]
    metrics = _metrics(project, table.experiments)
    return Comparison(name, table.title, search, runs, metrics)


def _of_runs(
    project: Project, runs: Sequence[Run], remote: Sequence[RemoteRun], client: TrackingClient
) -> Comparison:
    newest = {
        f"{run.tags.get('smt.experiment')}-seed{run.tags.get('smt.seed')}": run for run in remote
    }
    missing = [str(run) for run in runs if str(run) not in newest]
    if missing:
        raise UserError(_not_sent(f"run {missing[0]}", client))
    chosen = tuple(newest[str(run)] for run in runs)
    ids = ", ".join(f"'{run.run_id}'" for run in chosen)
    return Comparison(
        key=hashlib.sha256(ids.encode()).hexdigest()[:12],
        title=f"{len(runs)} runs",
        search=f"attributes.run_id IN ({ids})",
        runs=chosen,
        metrics=_metrics(project, [run.experiment for run in runs]),
    )


def _metrics(project: Project, experiments: Sequence[str]) -> tuple[str, ...]:
    """Return the headline metrics of the experiments, and losses."""
    tasks = dict.fromkeys(project.experiments[name].task for name in experiments)
    validation = ["eval/loss"] if "classify" in tasks else []
    return (*(f"eval/{HEADLINES[task]}" for task in tasks), "train/loss", *validation)
