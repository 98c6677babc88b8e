"""The paper's tables: reported beside reproduced, row by row."""

from collections.abc import Iterator, Mapping, Sequence

from smt.config.metrics import METRICS
from smt.config.published import ReportedValue, Row, Table
from smt.report.collect import Results, RunResult, by_reason
from smt.report.format import (
    css_class,
    exact,
    joined,
    plus_minus,
    signed,
    source_mark,
    source_notes,
)
from smt.report.grid import Cell, Column, Grid
from smt.report.metric_result import MetricResult, has_best, metric_result, reported_kind
from smt.report.notes import (
    BRIEF,
    COUNTED,
    DERIVED,
    INTERVAL_TITLE,
    NOT_COMPARED,
    NOT_MEASURED,
    REPRODUCED,
    best_epoch,
    chance_notes,
    unmeasured,
)
from smt.report.released import COLUMN, ReleasedResults
from smt.report.result_cells import (
    best_cell,
    best_record,
    interval_cell,
    link_of,
    run_span,
    run_title,
)
from smt.report.sizes import Sizes
from smt.report.verdict import delta

SIZES = ("params_m", "gmacs")
"""Published sizes of a head on a model."""


class ResultTable:
    """Builds one table of `params/tables.yaml` from the results of its runs."""

    def __init__(self, name: str, results: Results, *, with_sizes: bool = True) -> None:
        """`with_sizes`: show measured sizes, if the table has them."""
        self.name = name
        self.results = results
        self.project = results.project
        self.table: Table = self.project.tables[name]
        shows_sizes = with_sizes and self.table.sizes
        self.sizes = results.sizes[self.project.scale_name] if shows_sizes else None
        self.comparable = self.project.scale.notice is None
        self.released = self._released()
        self.shows_reported = self.project.scale.reported
        self.extra = tuple(dict.fromkeys(key for row in self.table.rows for key in row.columns))
        self.sources = tuple(
            dict.fromkeys(
                reported.source for row in self.table.rows for reported in self._every_reported(row)
            )
        )

    def grid(self) -> Grid:
        """Return the table; cells of runs that are not done show their state."""
        return Grid(
            name=self.name,
            title=self.project.table_title(self.table.title),
            caption=self.table.caption,
            notice=self.project.scale.notice,
            columns=self._columns(),
            rows=tuple(self._cells(row) for row in self.table.rows),
            notes=self._notes(),
            records=tuple(self._record(row) for row in self.table.rows),
        )

    def _released(self) -> ReleasedResults | None:
        """Return what stands in the column of released weights; None where there is no column.

        Released weights are the paper's own models, so at another scale it is there only once one
        was evaluated.
        """
        found = self.results.released.get(self.project.scale_name)
        if not self.table.released or found is None:
            return None
        names = self.table.experiments
        evaluated = any(name in found.evaluations or name in found.damages for name in names)
        return found if self.comparable or evaluated else None

    # --- numbers -------------------------------------------------------------------------------

    def _every_reported(self, row: Row) -> Iterator[ReportedValue]:
        """Yield the published numbers of a row, in the order of its cells."""
        if self.sizes is not None:
            sizes = self._reported_sizes(row)
            yield from (sizes[key] for key in SIZES if key in sizes)
        values = (self.reported(row.experiment, metric) for metric in self.table.metrics)
        yield from (value for value in values if value is not None)

    def _system(self, row: Row) -> str:
        """Return the name of the head and model that a row is of."""
        return self.project.experiments[row.experiment].system

    def _reported_sizes(self, row: Row) -> Mapping[str, ReportedValue]:
        return self.project.reported.sizes_of(self._system(row))

    def _measured(self, row: Row) -> dict[str, int]:
        """Return parameters and MACs of a row, as far as they have been measured, by convention."""
        name = self._system(row)
        size = self.sizes.size_of_image(name) if self.sizes is not None else None
        if self.sizes is None or size is None:
            return {}
        counts = {key: self.sizes.macs(name, size, key) for key in ("reported", "attention")}
        sizes = {"params": self.sizes.params(name), **counts}
        return {key: value for key, value in sizes.items() if value is not None}

    def _is_measured(self, row: Row, metric: str) -> bool:
        """Return whether a row has a metric at all: not every detector predicts masks."""
        return metric in self.project.metrics_of(row.experiment)

    def reported(self, experiment: str, metric: str) -> ReportedValue | None:
        """Return the value that this table shows as published, or as derived from such."""
        return self.project.reported_value(experiment, metric, self.name)

    def _n(self, experiment: str) -> int:
        """Return the number of seeds of an experiment that are done."""
        return sum(run.has_numbers for run in self.results.of(experiment))

    def result(self, experiment: str, metric: str) -> MetricResult:
        """Return reported and reproduced value of an experiment, and the verdict."""
        return metric_result(self.results, experiment, metric, self.name)

    def _gains(self, row: Row, metric: str) -> tuple[float | None, float | None]:
        """Return the reported and the reproduced gain over the table's baseline."""
        assert self.table.baseline is not None
        own, base = self.result(row.experiment, metric), self.result(self.table.baseline, metric)
        reported = reproduced = None
        if own.reported and base.reported:
            reported = delta(own.reported.value, base.reported.value)
        if own.summary and base.summary:
            reproduced = delta(own.summary.mean, base.summary.mean)
        return reported, reproduced

    # --- cells ---------------------------------------------------------------------------------

    def _columns(self) -> tuple[Column, ...]:
        columns = [Column("Variant"), *(Column(key) for key in self.extra)]
        if self.sizes is not None:
            columns += [
                Column(title, group, numeric=True)
                for group, titles in (
                    ("Parameters (M)", ("reported", "measured")),
                    ("MACs (G)", ("reported", "as published", "with attention")),
                )
                for title in titles
            ]
        for metric in self.table.metrics:
            columns += self._metric_columns(metric)
        return (*columns, Column("Seeds", numeric=True), Column("Runs", provenance=True))

    def _result_titles(self, metric: str) -> list[str]:
        """Return the titles of a metric's columns, without those of gains.

        Of a metric that has no published number in any row, there is nothing to compare with.
        """
        is_published = self.shows_reported and any(
            self.reported(row.experiment, metric) for row in self.table.rows
        )
        is_judged = is_published and not self.table.brief
        is_spread_shown = is_judged or not (self.shows_reported or self.table.brief)
        titles = {
            "reported": is_published,
            COLUMN: self.released is not None,
            "reproduced": True,
            "best epoch": has_best(metric),
            "delta": is_judged,
            INTERVAL_TITLE: is_spread_shown and self.comparable,
            "verdict": is_judged,
        }
        return [title for title, is_shown in titles.items() if is_shown]

    def _metric_columns(self, metric: str) -> list[Column]:
        heading = METRICS[metric].heading
        columns = [
            Column(title, heading, numeric=title != "verdict")
            for title in self._result_titles(metric)
        ]
        if self.table.baseline is not None:
            group = f"Gain, {heading}"
            titles = ["reported", "reproduced"][0 if self.shows_reported else 1 :]
            columns += [Column(title, group, numeric=True) for title in titles]
        return columns

    def _cells(self, row: Row) -> tuple[Cell, ...]:
        runs = self.results.of(row.experiment)
        cells = [Cell.of(row.label), *(Cell.of(row.columns.get(key, "")) for key in self.extra)]
        if self.sizes is not None:
            cells += self._size_cells(row, self.sizes)
        for metric in self.table.metrics:
            cells += self._metric_cells(row, metric, runs)
        done = self._n(row.experiment)
        seeds = str(done) if done == len(runs) else f"{done} of {len(runs)}"
        return (*cells, Cell.of(seeds), Cell(tuple(run_span(run) for run in runs)))

    def _metric_cells(self, row: Row, metric: str, runs: Sequence[RunResult]) -> list[Cell]:
        if not self._is_measured(row, metric):
            return [Cell.of("")] * len(self._metric_columns(metric))
        result, decimals = self.result(row.experiment, metric), METRICS[metric].decimals
        by_title = {
            "reported": self._published(result.reported),
            "reproduced": self._reproduced_cell(result, runs),
            "best epoch": best_cell(result),
            "delta": Cell.of(signed(result.delta, decimals)),
            INTERVAL_TITLE: interval_cell(result),
            "verdict": Cell.of(result.verdict, kind=css_class(result.verdict)),
        }
        if self.released is not None:
            by_title[COLUMN] = self.released.cell(row.experiment, metric)
        cells = [by_title[title] for title in self._result_titles(metric)]
        if self.table.baseline is not None:
            gains = self._gains(row, metric)[0 if self.shows_reported else 1 :]
            cells += [Cell.of(signed(gain, decimals)) for gain in gains]
        return cells

    def _size_cells(self, row: Row, sizes: Sizes) -> list[Cell]:
        published, measured = self._reported_sizes(row), self._measured(row)

        def count(key: str, unit: float) -> Cell:
            return Cell.of(f"{measured[key] / unit:.2f}") if key in measured else sizes.missing

        return [
            self._published(published.get("params_m")),
            count("params", 1e6),
            self._published(published.get("gmacs")),
            count("reported", 1e9),
            count("attention", 1e9),
        ]

    def _published(self, value: ReportedValue | None) -> Cell:
        if value is None:
            return Cell.of("")
        derived = " derived" if value.derived_for else ""
        return Cell.of(f"{value.value}{derived} [{source_mark(self.sources.index(value.source))}]")

    def _reproduced_cell(self, result: MetricResult, runs: Sequence[RunResult]) -> Cell:
        if result.summary is None:
            states = tuple(dict.fromkeys(run.lack for run in runs if not run.has_numbers))
            # A run that is done can lack a metric: `unmeasured` has the reasons.
            state = " and ".join(states) or NOT_MEASURED
            warned = [run.warning.text for run in runs if run.warning]
            # One is enough for a cell; the notes have every one.
            state = ", ".join((state, *warned[:1]))
            link = link_of(self.results, runs, result.metric)
            return Cell.of(state, link, kind=css_class(states[0]) if states else "")
        summary = result.summary
        text = plus_minus(summary.mean, summary.std, METRICS[result.metric].decimals)
        done = [run for run in runs if run.has_numbers]
        title = "; ".join(run_title(run) for run in done)
        return Cell.of(text, link_of(self.results, done, result.metric), title=title)

    # --- notes and records ---------------------------------------------------------------------

    def _notes(self) -> tuple[str, ...]:
        table = self.table
        notes = source_notes(self.sources, self.project.reported.sources)
        if any(value.derived_for for row in table.rows for value in self._every_reported(row)):
            notes.append(DERIVED)
        single = [row.label for row in table.rows if self._n(row.experiment) == 1]
        notes.append(
            f"{REPRODUCED} Rows of one seed have none: {joined(single)}." if single else REPRODUCED
        )
        results = [
            (row, self.result(row.experiment, metric))
            for row in table.rows
            for metric in table.metrics
        ]
        notes += [
            best_epoch(metric, is_judged=self.shows_reported)
            for metric in table.metrics
            if has_best(metric)
        ]
        if table.brief:
            notes.append(BRIEF)
        elif self.comparable:
            notes += chance_notes(self.project, table, results)
        elif self.shows_reported:
            notes.append(NOT_COMPARED)
        if self.sizes is not None:
            notes.append(COUNTED)
            if not all(self._measured(row) for row in table.rows):
                notes.append(f"Sizes: {self.sizes.reason}.")
        if table.baseline is not None:
            label = next(
                (row.label for row in table.rows if row.experiment == table.baseline),
                table.baseline,
            )
            notes.append(f"Gain: over the row {label}.")
        if self.released is not None:
            notes += self.released.notes(table.rows)
        notes += self._deviations()
        notes += self._unmeasured()
        notes += self._reasons()
        return tuple(note.replace("..", ".") for note in notes)

    def _deviations(self) -> Iterator[str]:
        """Yield which runs were not trained as in the paper, once for all of one kind."""
        runs: dict[str, list[str]] = {}
        for each in self.results.of_table(self.name):
            for deviation in each.deviations:
                runs.setdefault(deviation, []).append(str(each.run))
        for deviation, names in runs.items():
            yield f"{joined(names)}: {deviation}."

    def _unmeasured(self) -> Iterator[str]:
        """Yield which metrics runs lack that are done, once for all metrics of the same runs."""
        metrics: dict[tuple[str, ...], list[str]] = {}
        for metric in self.table.metrics:
            runs = tuple(
                str(run.run)
                for row in self.table.rows
                if self._is_measured(row, metric)
                for run in self.results.of(row.experiment)
                if run.has_numbers and metric not in run.metrics
            )
            if runs:
                metrics.setdefault(runs, []).append(metric)
        for runs, lacking in metrics.items():
            yield unmeasured(lacking, runs)

    def _reasons(self) -> Iterator[str]:
        """Yield why runs are not done, once for all runs that share a reason."""
        for (state, reason), runs in by_reason(self.results.of_table(self.name)).items():
            yield f"{', '.join(str(run.run) for run in runs)}: {state}: {reason}."

    def _record(self, row: Row) -> dict[str, str]:
        runs = self.results.of(row.experiment)
        record = {
            "table": self.name,
            "label": row.label,
            **{key: row.columns.get(key, "") for key in self.extra},
            "experiment": row.experiment,
            "scale": self.project.scale_name,
            "notice": self.project.scale.notice or "",
            "n": str(self._n(row.experiment)),
        }
        if self.sizes is not None:
            published, measured = self._reported_sizes(row), self._measured(row)
            record |= {
                f"{key}_reported": exact(published[key].value if key in published else None)
                for key in SIZES
            }
            record["params"] = str(measured.get("params", ""))
            record |= {
                f"macs_{key}": str(measured.get(key, "")) for key in ("reported", "attention")
            }
        for metric in self.table.metrics:
            record |= self._metric_record(row, metric)
        if self.released is not None:
            record |= self.released.file_record(row.experiment)
        return record | {
            "seeds": joined(run.run.seed for run in runs),
            "states": joined(run.state for run in runs),
            "reasons": joined(run.reason for run in runs if run.reason),
            "run_ids": joined(run.remote.run_id if run.remote else "" for run in runs),
            "fingerprints": joined(run.fingerprint or "" for run in runs),
        }

    def _metric_record(self, row: Row, metric: str) -> dict[str, str]:
        result = self.result(row.experiment, metric)
        summary, reported = result.summary, result.reported
        record = {
            f"{metric}_reported": exact(reported.value if reported else None),
            f"{metric}_reported_kind": reported_kind(reported),
            f"{metric}_source": reported.source if reported else "",
            f"{metric}_mean": exact(summary.mean if summary else None),
            f"{metric}_std": exact(summary.std if summary else None),
            **best_record(result),
            f"{metric}_delta": exact(result.delta),
            f"{metric}_interval": exact(result.interval),
            f"{metric}_interval_of": result.basis,
            f"{metric}_pooled_std": exact(result.spread.std if result.spread else None),
            f"{metric}_pooled_df": str(result.spread.df if result.spread else ""),
            f"{metric}_verdict": result.verdict if self._is_measured(row, metric) else "",
        }
        if self.released is not None:
            record |= self.released.record(row.experiment, metric)
        if self.table.baseline is not None:
            gain_reported, gain = self._gains(row, metric)
            record[f"{metric}_gain_reported"] = exact(gain_reported)
            record[f"{metric}_gain"] = exact(gain)
        return record
