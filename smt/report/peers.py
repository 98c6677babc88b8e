"""Tables of published models beside SMT: sizes published and measured, results with sources."""

from collections.abc import Iterator, Mapping

from smt.config.metrics import METRICS
from smt.config.numbers import SIZES
from smt.config.peers import PeerTable, peer_size_name
from smt.report import evidence
from smt.report.collect import Results
from smt.report.format import css_class, exact, plus_minus, source_mark, source_notes
from smt.report.grid import Cell, Column, Grid
from smt.report.metric_result import summary_of

_MEASURED = (
    "Measured: by smt profile, with the same counter for every model; MACs are counted as the "
    "published figures of SMT were, without the products of attention, and with them. Of other "
    "models, those that timm has."
)
_REPRODUCED = (
    "Reproduced: mean over the seeds that are done here ± their sample standard deviation. A peer "
    "is trained here by SMT's recipe, not by its own."
)


class PeerGrid:
    """Builds one table of `params/peers.yaml`: rows by cost, SMT's among them."""

    def __init__(self, name: str, results: Results) -> None:
        self.name, self.results = name, results
        self.project = results.project
        self.table: PeerTable = self.project.peer_tables[name]
        rows = [*self._own_rows(), *self._peer_rows()]
        self.rows = sorted(rows, key=lambda row: float(row["gmacs_published"] or "inf"))
        sources = (row[key] for row in self.rows for key in row if key.endswith("source"))
        self.sources = tuple(dict.fromkeys(source for source in sources if source))

    def grid(self) -> Grid:
        """Return the table."""
        columns = [
            Column("Model"),
            Column("published", "Parameters (M)", numeric=True),
            Column("measured", "Parameters (M)", numeric=True),
            Column("published", "MACs (G)", numeric=True),
            Column("measured", "MACs (G)", numeric=True),
            Column("with attention", "MACs (G)", numeric=True),
        ]
        for metric in self.table.metrics:
            heading = METRICS[metric].heading
            columns += [Column("published", heading, numeric=True),
                        Column("reproduced", heading, numeric=True)]  # fmt: skip
        notice = self.project.scale.notice
        return Grid(
            name=self.name,
            title=self.project.table_title(self.table.title),
            caption=self.table.caption,
            notice=notice,
            columns=tuple(columns),
            rows=tuple(self._cells(row) for row in self.rows),
            notes=(
                *source_notes(self.sources, self.project.reported.sources), _MEASURED, _REPRODUCED
            ),
            records=tuple(
                {"table": self.name, **row, "scale": self.project.scale_name,
                 "notice": notice or ""}
                for row in self.rows
            ),
        )  # fmt: skip

    def _own_rows(self) -> Iterator[dict[str, str]]:
        for name in self.table.experiments:
            experiment = self.project.experiments[name]
            owner = experiment.model if experiment.head is None else experiment.system
            sizes = self.project.reported.sizes_of(owner)
            row = {"model": experiment.title, "experiment": name}
            for key in SIZES:
                row[f"{key}_published"] = exact(sizes[key].value) if key in sizes else ""
            row["size_source"] = next((value.source for value in sizes.values()), "")
            row |= self._measured(owner)
            for metric in self.table.metrics:
                published = self.project.reported_value(name, metric)
                row[f"{metric}_published"] = exact(published.value) if published else ""
                row[f"{metric}_source"] = published.source if published else ""
                row |= self._reproduced(name, metric)
            yield row

    def _peer_rows(self) -> Iterator[dict[str, str]]:
        for peer in self.table.peers.values():
            row = {"model": peer.title, "experiment": peer.experiment or ""}
            row |= {f"{key}_published": exact(getattr(peer, key)) for key in SIZES}
            row["size_source"] = peer.source
            row |= self._measured(peer_size_name(peer.timm) if peer.timm is not None else None)
            for metric in self.table.metrics:
                row[f"{metric}_published"] = exact(peer.results.get(metric))
                row[f"{metric}_source"] = peer.source if metric in peer.results else ""
                row |= self._reproduced(peer.experiment, metric)
            yield row

    def _title(self, row: Mapping[str, str]) -> str:
        """Return the title of a model, and of a peer that of the experiment which trains it."""
        experiment = row["experiment"]
        if not experiment or experiment in self.table.experiments:
            return row["model"]
        return f"{row['model']} (here: {self.project.experiments[experiment].title})"

    def _reproduced(self, experiment: str | None, metric: str) -> dict[str, str]:
        """Return mean and deviation over the seeds of an experiment, or why there are none."""
        if experiment is None:
            return {f"{metric}_{key}": "" for key in ("mean", "std", "lack")}
        summary = summary_of(self.results.of(experiment), metric)
        return {
            f"{metric}_mean": exact(summary.mean if summary else None),
            f"{metric}_std": exact(summary.std if summary else None),
            f"{metric}_lack": "" if summary else self._lack(experiment),
        }

    def _lack(self, experiment: str) -> str:
        """Return the states of runs that have no numbers."""
        return " and ".join(dict.fromkeys(run.lack for run in self.results.of(experiment)))

    def _measured(self, owner: str | None) -> dict[str, str]:
        """Return measured sizes, as far as there are any."""
        counts = {} if owner is None else evidence.measured_sizes(self.results, owner)
        return {
            f"{key}_measured": exact(counts.get(key))
            for key in ("params_m", "gmacs", "gmacs_attention")
        }

    def _cells(self, row: dict[str, str]) -> tuple[Cell, ...]:
        size_mark = self._mark(row["size_source"])
        cells = [
            Cell.of(self._title(row)),
            Cell.of(_number(row["params_m_published"], "g", size_mark)),
            Cell.of(_number(row["params_m_measured"], ".2f")),
            Cell.of(_number(row["gmacs_published"], "g", size_mark)),
            Cell.of(_number(row["gmacs_measured"], ".2f")),
            Cell.of(_number(row["gmacs_attention_measured"], ".2f")),
        ]
        for metric in self.table.metrics:
            mean, std = row[f"{metric}_mean"], row[f"{metric}_std"]
            decimals = METRICS[metric].decimals
            cell = Cell.of(row[f"{metric}_lack"], kind=css_class(row[f"{metric}_lack"]))
            if mean:
                spread = float(std) if std else None
                cell = Cell.of(plus_minus(float(mean), spread, decimals))
            mark = self._mark(row[f"{metric}_source"])
            cells += [Cell.of(_number(row[f"{metric}_published"], "g", mark)), cell]
        return tuple(cells)

    def _mark(self, source: str) -> str:
        return f" [{source_mark(self.sources.index(source))}]" if source else ""


def _number(text: str, spec: str, mark: str = "") -> str:
    return f"{float(text):{spec}}{mark}" if text else ""
