"""Results as a tidy DataFrame, for notebooks: `smt tables --frame`.

pandas is imported where a DataFrame is made: it takes half a second.
"""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from smt.config.metrics import METRICS
from smt.config.published import Table
from smt.errors import UserError
from smt.report.collect import Results, RunResult
from smt.report.metric_result import metric_result, reported_kind
from smt.report.verdict import delta
from smt.runs.atomic import explained, replacing

if TYPE_CHECKING:
    import pandas

COLUMNS: Mapping[str, tuple[str, str]] = {
    "scale": ("string", "Scale of the project: paper, demo, ..."),
    "comparable": ("boolean", "Whether results of this scale can be compared with the paper's"),
    "experiment": ("string", "Name in params/experiments.yaml"),
    "task": ("string", "classify, detect or segment"),
    "group": ("string", "pretrain, finetune, ablation, detect or segment"),
    "model": ("string", "Name in params/models.yaml"),
    "head": ("string", "Name in params/heads.yaml; missing for classifiers"),
    "recipe": ("string", "Name in params/recipes.yaml"),
    "dataset": ("string", "Name in params/data.yaml"),
    "table": (
        "string",
        "First table with its published number, else the first that shows it",
    ),
    "seed": ("Int64", "Seed of the run"),
    "state": ("string", "State of the run"),
    "reason": ("string", "Why the run has no value; empty if it has"),
    "metric": ("string", "top1, box_ap, miou, ..."),
    "unit": ("string", "percent, or empty for a loss"),
    "value": ("float64", "The result at the last epoch; missing until the run is in MLflow"),
    "best_value": ("float64", "The metric at the epoch that is best by the headline metric"),
    "best_epoch": ("Int64", "That epoch"),
    "reported": ("float64", "Published number; missing if there is none"),
    "reported_kind": ("string", "published, or derived from published numbers"),
    "reported_source": ("string", "Name of its source in params/reported.yaml"),
    "delta": ("float64", "value less reported"),
    "n": ("Int64", "Seeds of the experiment that have the metric"),
    "mean": ("float64", "Mean of value over them"),
    "std": ("float64", "Sample standard deviation over them; missing for a single seed"),
    "interval": ("float64", "Half the width of the 95 % prediction interval around mean"),
    "tolerance": ("float64", "Distance from reported that counts as reproduced"),
    "verdict": ("string", "Verdict on mean"),
    "wall_seconds": ("float64", "Training time of the run, in seconds"),
    "fingerprint": ("string", "Fingerprint of the run; missing without a manifest of its data"),
    "mlflow_run_id": ("string", "MLflow run; missing if nothing was sent"),
    "mlflow_url": ("string", "Its page"),
}
"""Columns of `frame()`: type in pandas, and content. A missing value is NA, or NaN as a float."""

FRAME_SUFFIXES = (".csv", ".parquet")


def frame(results: Results, tables: Sequence[str] = ()) -> "pandas.DataFrame":
    """Return the results as a tidy DataFrame: a row each run and metric, with the COLUMNS.

    Every run of the scale is in it once, in the order of params, whichever tables show it; with
    `tables`, only the runs that these show. What holds of an experiment (n, mean, verdict) stands
    in the rows of each of its seeds.
    """
    import pandas

    project = results.project
    selected = {name: project.tables[name] for name in tables or project.tables}
    table_experiments = dict.fromkeys(
        name for table in selected.values() for name in table.experiments
    )
    experiments = table_experiments if tables else project.experiments
    rows = [row for name in experiments for row in _experiment_rows(results, name, selected)]
    data = pandas.DataFrame(rows, columns=list(COLUMNS))
    return data.astype({name: kind for name, (kind, _) in COLUMNS.items()})


def require_frame_suffix(path: Path) -> None:
    """Raise a UserError for a file that is neither CSV nor Parquet."""
    if path.suffix not in FRAME_SUFFIXES:
        raise UserError(f"--frame {path}: no such format; valid: {', '.join(FRAME_SUFFIXES)}")


def write_frame(data: "pandas.DataFrame", path: Path) -> None:
    """Write a DataFrame as CSV or Parquet, by the suffix.

    Raises:
        UserError: the file cannot be written.
    """
    require_frame_suffix(path)
    with explained(path, "give another place: --frame FILE"), replacing(path) as file:
        if path.suffix == ".csv":
            data.to_csv(file, index=False)
        else:
            data.to_parquet(file, index=False)


def _experiment_rows(
    results: Results, name: str, tables: Mapping[str, Table]
) -> Iterator[dict[str, Any]]:
    """Yield the rows of an experiment, by seed and metric."""
    project, experiment = results.project, results.project.experiments[name]
    common = {
        "scale": project.scale_name,
        "comparable": project.scale.notice is None,
        "experiment": name,
        **experiment.model_dump(include={"task", "group", "model", "head", "recipe"}),
        "dataset": project.dataset_of(name),
    }
    columns = [
        {**common, **_metric_columns(results, name, metric, tables)}
        for metric in project.metrics_of(name)
    ]
    for run in results.of(name):
        for shared in columns:
            yield {**shared, **_run_columns(run, shared["metric"], shared["reported"])}


def _metric_columns(
    results: Results, experiment: str, metric: str, tables: Mapping[str, Table]
) -> dict[str, Any]:
    """Return the columns of a metric that all seeds of an experiment share."""
    names = [
        name
        for name, table in tables.items()
        if metric in table.metrics and experiment in table.experiments
    ]
    # A number that was derived for one table is reported in no other.
    with_reported = (
        name for name in names if results.project.reported_value(experiment, metric, name)
    )
    table = next(with_reported, names[0] if names else None)
    result = metric_result(results, experiment, metric, table or "")
    reported, summary = result.reported, result.summary
    return {
        "table": table,
        "metric": metric,
        "unit": "percent" if METRICS[metric].percent else "",
        "reported": reported.value if reported else None,
        "reported_kind": reported_kind(reported) or None,
        "reported_source": reported.source if reported else None,
        "n": summary.n if summary else 0,
        "mean": summary.mean if summary else None,
        "std": summary.std if summary else None,
        "interval": result.interval,
        "tolerance": results.project.tables[table].tolerance if table else None,
        "verdict": result.verdict,
    }


def _run_columns(run: RunResult, metric: str, reported: float | None) -> dict[str, Any]:
    value, best = run.metrics.get(metric), run.best
    return {
        "seed": run.run.seed,
        "state": run.state,
        "reason": run.reason,
        "value": value,
        "best_value": best.metrics.get(metric) if best else None,
        "best_epoch": best.epoch if best else None,
        "delta": None if value is None or reported is None else delta(value, reported),
        "wall_seconds": run.metrics.get("wall_seconds"),
        "fingerprint": run.fingerprint,
        "mlflow_run_id": run.remote.run_id if run.remote else None,
        "mlflow_url": run.url,
    }
