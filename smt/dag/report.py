"""Inputs and params of the jobs that make tables, figures and the report."""

import hashlib
import json
from dataclasses import dataclass
from typing import Any

from smt.config.peers import timm_names
from smt.dag.selection import Selection
from smt.report import drift, figures, pictures, throughput
from smt.report.build import FIXED, experiments_of, table_names
from smt.report.sizes import PAPER
from smt.runs.paths import PICTURES_RECORD, Layout

EVERYTHING = "all"
"""The selection of all runs, in place of a table's name."""


def digest_of(content: Any) -> str:
    """Return the SHA-256 of a value of JSON."""
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class ReportPlan(Selection):
    """What is made of the results of one scale."""

    @property
    def tables(self) -> tuple[str, ...]:
        """Names of all tables."""
        return table_names(self.project)

    @property
    def figures(self) -> tuple[str, ...]:
        """Names of all figures."""
        return tuple(figures.titles(self.project))

    def table_experiments(self, table: str) -> tuple[str, ...]:
        """Return the experiments whose results stand in `table`."""
        return experiments_of(self.project, table)

    @property
    def tabulated(self) -> tuple[str, ...]:
        """Experiments that stand in some table."""
        return tuple(
            {name: None for table in self.tables for name in self.table_experiments(table)}
        )

    def table_inputs(self, table: str, *, among_all: bool = False) -> list[str]:
        """Return the inputs of `table`: measured sizes, or results that MLflow has as well.

        `among_all` tables, it also waits for all seeds that its intervals rest on, those of
        experiments in other tables too. Asked for alone, it is made of what is done by then.
        """
        released = self.released_results(self._released_in(table))
        if table in FIXED:
            speeds = throughput.files(self.layout) if table == throughput.NAME else []
            inputs = (str(self.layout.sizes), self.sizes_of(PAPER), *map(str, speeds))
            return [*dict.fromkeys(inputs), *released]
        sizes = self._size_inputs(table)
        others = [self.synced(other) for other in self._pooled_with(table)] if among_all else []
        return [
            *self.results(self.table_experiments(table)),
            self.synced(table),
            *others,
            *sizes,
            *released,
        ]

    def _released_in(self, table: str) -> tuple[str, ...]:
        """Return the experiments whose released weights stand in `table`."""
        if table == drift.NAME:  # it is about the paper's own models, whatever the scale
            return self.released if self.project.scale_name == PAPER else ()
        own = self.project.tables.get(table)
        return own.experiments if own is not None and own.released else ()

    def _size_inputs(self, table: str) -> list[str]:
        """Return the measured sizes that stand in `table`."""
        own = self.project.tables.get(table)
        if own is None:
            return [self.sizes_of(PAPER)]  # those of the paper's models, whatever the scale
        return [str(self.layout.sizes)] if own.sizes else []

    def _pooled_with(self, table: str) -> tuple[str, ...]:
        """Return the other tables of results with seeds that intervals of `table` are pooled over.

        Others show the same experiments: the table of claims would wait for all of them.
        """
        if self.project.scale.notice is not None:
            return ()  # no verdicts, and no intervals
        experiments = self.project.experiments
        recipes = {experiments[name].recipe for name in self.table_experiments(table)}
        pooled = {
            name
            for name in self.tabulated
            if experiments[name].recipe in recipes and len(self.runs([name])) > 1
        }
        return tuple(
            other
            for other in self.project.tables
            if other != table and pooled.intersection(self.table_experiments(other))
        )

    def index_inputs(self) -> list[str]:
        """Return the inputs of the index page of the tables."""
        return [str(self.layout.tables / f"{table}.html") for table in self.tables] + [
            self.synced(EVERYTHING)
        ]

    def sizes_of(self, scale: str) -> str:
        """Return the sizes measured at `scale` in the same results folder."""
        return str(Layout(scale, self.layout.results, self.layout.data).sizes)

    def synced(self, selection: str) -> str:
        """Return the marker that says that a table's runs, or all, are in MLflow."""
        return str(self.layout.root / "sync" / f"{selection}.done")

    def sync_inputs(self, selection: str) -> list[str]:
        """Return the results that a sync of a table's runs, or of all, sends."""
        if selection == EVERYTHING:
            return self.results()
        return self.results(self.table_experiments(selection))

    def sync_options(self, selection: str) -> list[str]:
        """Return the options with which `smt sync` sends the runs of a table, or all."""
        names = () if selection == EVERYTHING else self.table_experiments(selection)
        return [option for name in names for option in ("--experiment", name)]

    def figure_inputs(self) -> list[str]:
        """Return the inputs of the figures."""
        sizes = dict.fromkeys((str(self.layout.sizes), self.sizes_of(PAPER)))
        return [*sizes, self.synced(EVERYTHING)]

    def pictured(self) -> list[str]:
        """Return the record of the pictures of each of the paper's models: of its first run."""
        names = pictures.pictured(self.project)
        first = [run for name in names for run in self.runs([name])[:1]]
        return [str(self.layout.pictures(run) / PICTURES_RECORD) for run in first]

    def report_inputs(self) -> list[str]:
        """Return the inputs of the report, and the files that it links."""
        images = [str(self.layout.figures / f"{figure}.svg") for figure in self.figures]
        images += [str(self.layout.samples(run)) for run in self.runs(self.with_head(True))]
        images += self.pictured()
        files = [*self.index_inputs(), *self.figure_inputs(), *images]
        return list(dict.fromkeys(files))

    def report_content(self) -> str:
        """Return a digest of everything in `params/` that the report prints."""
        tables = {table: self.table_content(table) for table in self.tables}
        return digest_of({"tables": tables, "figures": self.figures_content()})

    def table_content(self, table: str) -> str:
        """Return a digest of everything in `params/` that `table` prints."""
        project = self.project
        names = self.table_experiments(table)
        content: dict[str, Any] = {
            "notice": project.scale.notice,
            "seeds": {name: project.seeds(name) for name in names},
            "reported": project.reported.model_dump(mode="json"),
        }
        released = {
            name: self.project.released[name].model_dump(mode="json")
            for name in self._released_in(table)
            if name in self.released
        }
        if released:
            content["released"] = released
        if table in FIXED:
            content["findings"] = [row.model_dump(mode="json") for row in project.discrepancies]
            content["models"] = self.sizes_content()
            if table == throughput.NAME:
                content["peers"] = self._peers_content()
        elif table in project.tables:
            content["table"] = project.tables[table].model_dump(mode="json")
        elif table in project.peer_tables:
            content["table"] = project.peer_tables[table].model_dump(mode="json")
        else:  # claims name numbers of every table
            claims = project.claims
            content["peers"] = self._peers_content()
            content["claims"] = {name: it.model_dump(mode="json") for name, it in claims.items()}
        return digest_of(content)

    def _peers_content(self) -> dict[str, Any]:
        tables = self.project.peer_tables
        return {name: table.model_dump(mode="json") for name, table in tables.items()}

    def figures_content(self) -> str:
        """Return a digest of everything in `params/` that the figures print."""
        return digest_of(
            {
                "notice": self.project.scale.notice,
                "titles": figures.titles(self.project),
                "labels": {name: entry.title for name, entry in self.project.experiments.items()},
                "tables": [entry.model_dump(mode="json") for entry in self.project.tables.values()],
                "peers": [it.model_dump(mode="json") for it in self.project.peer_tables.values()],
                "reported": self.project.reported.model_dump(mode="json"),
            }
        )

    def sizes_content(self) -> str:
        """Return a digest of the inputs of `smt profile`: models and resolutions."""
        resolutions = sorted({recipe.resolution for recipe in self.project.recipes.values()})
        models = {
            name: model.model_dump(mode="json") for name, model in self.project.models.items()
        }
        content: dict[str, Any] = {"models": models, "resolutions": resolutions}
        if self.project.scale_name == PAPER:
            content["timm"] = timm_names(self.project.peer_tables)
        if self.project.systems:
            heads = self.project.heads
            content["heads"] = {name: head.model_dump(mode="json") for name, head in heads.items()}
            content["systems"] = list(self.project.systems.values())
        return digest_of(content)
