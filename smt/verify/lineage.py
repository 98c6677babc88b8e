"""The lineage of a table's row: its runs, and their code, params, data, jobs and parents."""

import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from smt.cluster import states
from smt.config.experiments import Run
from smt.config.metrics import HEADLINES, METRICS
from smt.config.project import Project
from smt.config.published import Row
from smt.datasets import manifest
from smt.errors import UserError, suggest
from smt.report import build
from smt.report.verdict import summarise
from smt.runs import record, shared_folder
from smt.runs.atomic import read_json
from smt.runs.journal import JOURNAL, best_evaluation
from smt.runs.paths import Layout
from smt.runs.provenance import diff_file
from smt.runs.record import PROVENANCE, Provenance, RunMetrics
from smt.verify.derive import derive, schedule_length
from smt.verify.tracking import Receipt

PACKAGES = ("torch", "torchvision", "timm", "numpy", "pillow")


@dataclass
class Node:
    """One line of a tree, and its children."""

    text: str
    children: list["Node"] = field(default_factory=list)

    def add(self, text: str) -> "Node":
        """Add a child and return it."""
        self.children.append(Node(text))
        return self.children[-1]

    def lines(self, indent: str = "") -> Iterator[str]:
        """Yield the tree as lines."""
        if not indent:
            yield self.text
        for index, child in enumerate(self.children):
            last = index == len(self.children) - 1
            yield f"{indent}{'└─ ' if last else '├─ '}{child.text}"
            yield from child.lines(f"{indent}{'   ' if last else '│  '}") if child.children else ()


def find_row(project: Project, table: str, name: str) -> Row:
    """Return the row of a table that has this label or experiment; case does not matter.

    Raises:
        UserError: no such table or row, with the nearest names.
    """
    build.require_names([table], project)
    if table not in project.tables:
        raise UserError(
            f"table {table} has no runs behind it: smt profile measures what it prints; give one "
            f"of {', '.join(project.tables)}"
        )
    rows = project.tables[table].rows
    for row in rows:
        if name.casefold() in (row.label.casefold(), row.experiment):
            return row
    labels = {row.label: row for row in rows}
    close = suggest(name, [*labels, *(row.experiment for row in rows)])
    raise UserError(f"no row {name!r} in table {table}; {close}")


class Lineage:
    """Walks from a row to its runs, their code, params, data, jobs and parents."""

    def __init__(self, project: Project, layout: Layout) -> None:
        self.project, self.layout = project, layout
        self.receipt = Receipt.read(layout)
        self.states = states.read(project, layout)

    def row(self, table: str, row: Row) -> Node:
        """Return the tree of one row."""
        project = self.project
        root = Node(f"{project.tables[table].title}: {row.label}")
        if project.scale.notice:
            root.add(project.scale.notice)
        runs = [Run(experiment=row.experiment, seed=s) for s in project.seeds(row.experiment)]
        finals = [final for run in runs if (final := record.read_metrics(self.layout, run))]
        for metric in project.tables[table].metrics:
            root.add(self._cell(table, row.experiment, metric, finals, len(runs)))
        root.add(f"in {self.layout.tables}/{table}.md, .csv, .tex, .html")
        for run in runs:
            root.children.append(self.run(run))
        return root

    def _cell(
        self,
        table: str,
        experiment: str,
        metric: str,
        finals: list[RunMetrics],
        seeds: int,
    ) -> str:
        values = [final.metrics[metric] for final in finals if metric in final.metrics]
        decimals, summary = METRICS[metric].decimals, summarise(values)
        text = f"{METRICS[metric].heading}: "
        if summary is None:
            text += "not run"
        else:
            text += f"{summary.mean:.{decimals}f}"
            if summary.std is not None:
                text += f" ± {summary.std:.{decimals}f}"
            text += f", {summary.n} of {seeds} seeds"
        reported = self.project.reported_value(experiment, metric, table)
        if reported is None:
            return f"{text}; not reported"
        source = self.project.reported.sources[reported.source]
        kind = "derived" if reported.derived_for else "reported"
        return f"{text}; {kind} {reported.value} ({source.title}: {source.where})"

    def run(self, run: Run, called: str = "", children: tuple[Run, ...] = ()) -> Node:
        """Return the tree of one run; `called` is its heading as a parent of `children`."""
        final = record.read_metrics(self.layout, run)
        name = called or f"run {run}"
        if final is None:
            return Node(f"{name}: {self._state(run)} ({self.layout.metrics(run)} is not there)")
        node = Node(f"{name}: {_numbers(final.metrics)}")
        node.add(f"fingerprint {final.fingerprint} ({self._current(run, final)})")
        work_dir = self.layout.work_dir(run, final.fingerprint)
        provenance = record.read_provenance(work_dir)
        node.children += self._numbers_of(run, final, work_dir)
        if provenance is None:
            node.add(f"no provenance: {work_dir / PROVENANCE} is not there")
            return node
        node.children += [
            _code(provenance, work_dir),
            _machine(provenance),
            _params(provenance),
            self._data(provenance),
        ]
        node.children.append(_attempts(provenance, final))
        node.add(self._mlflow(final.fingerprint))
        node.children.append(self._parent(provenance, (*children, run)))
        return node

    def _current(self, run: Run, final: RunMetrics) -> str:
        run_state = self.states.get(run)
        if run_state is not None and run_state.data_problem:
            return "there is no manifest to tell if params and data are the present ones"
        same = run_state is not None and run_state.fingerprint == final.fingerprint
        return "of the present params and data" if same else "params or data have changed since"

    def _state(self, run: Run) -> str:
        run_state = self.states.get(run)
        return run_state.state if run_state else "not a run of this scale"

    def _numbers_of(self, run: Run, final: RunMetrics, work_dir: Path) -> Iterator[Node]:
        try:
            derived = derive(work_dir)
            equal = dict(derived.metrics) == final.metrics
            yield Node(f"numbers: {derived.source}: {'equal' if equal else 'NOT EQUAL'}")
        except (OSError, ValueError) as error:
            yield Node(f"numbers: {work_dir / JOURNAL} gives none ({error})")
        yield from self._best(run, work_dir)
        weights = self.layout.weights(run)
        there = shared_folder.exists(weights)
        size = f"{weights.stat().st_size / 2**20:.1f} MB" if there else "not there"
        yield Node(f"weights: {weights}, SHA-256 {final.weights_sha256[:16]}..., {size}")
        again = record.read_evaluation(self.layout, run)
        yield Node(
            f"evaluated on their own: {_numbers(again.metrics)}, {again.images} images "
            f"({self.layout.evaluation(run)})"
            if again
            else "evaluated on their own: not yet"
        )

    def _best(self, run: Run, work_dir: Path) -> Iterator[Node]:
        """Yield the best epoch of a run that was evaluated more than once."""
        headline = HEADLINES[self.project.experiments[run.experiment].task]
        try:
            best = best_evaluation(work_dir, headline)
        except (ValueError, KeyError, TypeError):
            return  # a damaged journal is named above
        if best is not None and best.evaluations > 1:
            yield Node(
                f"best epoch: {METRICS[headline].format(best.metrics[headline])} at epoch "
                f"{best.epoch}, of {best.evaluations} evaluations: {work_dir / JOURNAL}, line "
                f"{best.line}"
            )

    def _data(self, provenance: Provenance) -> Node:
        node = Node("data")
        for key, digest in provenance.data.items():
            path = manifest.manifest_path(self.layout, key)
            now = _digest(path)
            state = (
                "" if now == digest else "; NOT the present one" if now else "; no manifest here"
            )
            node.add(f"{key}: digest {digest[:16]}... ({path}{state})")
        return node

    def _mlflow(self, name: str) -> str:
        entry = self.receipt.runs.get(name) if self.receipt else None
        if entry is None or self.receipt is None:
            return "MLflow: not sent yet (smt sync)"
        uri = self.receipt.address.uri
        return f"MLflow: run {entry['run_id']}, {entry['status'].lower()}, at {uri}"

    def _parent(self, provenance: Provenance, children: tuple[Run, ...]) -> Node:
        parent = provenance.parent
        if parent is None:
            return Node("starts from: no other run; its weights are drawn from its seed")
        run = Run(experiment=parent.experiment, seed=parent.seed)
        called = f"starts from {run}, weights {parent.weights_sha256[:16]}..."
        if run in children:
            return Node(f"{called}: that cannot be, for it starts from this one")
        final = record.read_metrics(self.layout, run)
        if final is not None and final.weights_sha256 != parent.weights_sha256:
            return Node(f"{called}: NOT those that are there now: it has been trained again since")
        return self.run(run, called, children)


def _digest(path: Path) -> str | None:
    """Return the digest in a manifest, or None without one."""
    try:
        return (read_json(path) or {}).get("digest")
    except ValueError:
        raise UserError(f"{path}: not JSON; smt verify names all that is damaged") from None


def _numbers(metrics: Mapping[str, float]) -> str:
    return ", ".join(f"{name} {value:.6g}" for name, value in sorted(metrics.items()))


def _code(provenance: Provenance, work_dir: Path) -> Node:
    git = provenance.git
    if git.commit is None:
        return Node("code: not in a git checkout; digests of its modules are in provenance.json")
    node = Node(f"code: commit {git.commit}{', with changes' if git.dirty else ', clean'}")
    for digest in provenance.diffs:
        node.add(f"changes: {diff_file(work_dir, digest)}")
    if git.untracked:
        node.add(f"files that git does not know: {git.untracked.count}")
    for attempt in provenance.attempts:
        for change in attempt.changes:
            node.add(f"changed on the way: {change}")
    return node


def _machine(provenance: Provenance) -> Node:
    hardware, environment = provenance.hardware, provenance.environment
    gpus = ", ".join(hardware.gpus) or "no GPU"
    node = Node(
        f"machine: {hardware.host}, {hardware.processor}, {gpus}; "
        f"processes: {environment.world_size}, threads of each: {environment.threads}, "
        f"{environment.precision}"
    )
    versions = {name.lower(): version for name, version in provenance.packages.items()}
    for deviation in provenance.deviations:
        node.add(deviation)
    node.add(", ".join(f"{name} {versions[name]}" for name in PACKAGES if name in versions))
    return node


def _params(provenance: Provenance) -> Node:
    params, names = provenance.params, provenance.names
    node = Node(f"params: model {names.model}, recipe {names.recipe}, seed {params['seed']}")
    recipe, optimizer = params["recipe"], params["recipe"]["optimizer"]
    node.add(
        f"{schedule_length(recipe['schedule'])}, at {_size(recipe)} pixels, global batch "
        f"{recipe['global_batch']}, lr {optimizer['lr']:g}, weight decay "
        f"{optimizer['weight_decay']:g}, drop path {params['drop_path']:g}"
    )
    if "head" in params:
        node.add(f"head {params['head']['kind']}, {params['classes']} classes")
    model = params["model"]
    node.add(
        f"widths {model['widths']}, depths {model['depths']}, mixers {model['mixers']}, "
        f"{model['mhmc_heads']} heads in MHMC, aggregation {model['aggregation']}"
    )
    return node


def _size(recipe: Mapping[str, Any]) -> str:
    """Return the size of an image: of a classifier's the side, of others' height and width."""
    if "resolution_long" in recipe:
        return f"{recipe['resolution']} x {recipe['resolution_long']}"
    return str(recipe["resolution"])


def _attempts(provenance: Provenance, final: RunMetrics) -> Node:
    attempts = provenance.attempts
    jobs = dict.fromkeys(attempt.slurm_job_id for attempt in attempts if attempt.slurm_job_id)
    where = f"SLURM jobs {' '.join(jobs)}" if jobs else "without SLURM"
    spent = f"{final.wall_seconds:.0f} s"
    if final.gpu_seconds:
        spent += f", {final.gpu_seconds / 3600:.2f} GPU-hours"
    node = Node(f"attempts: {len(attempts)}, {where}, {spent}")
    for attempt in attempts:
        job = f", job {attempt.slurm_job_id}" if attempt.slurm_job_id else ""
        nodes = f" on {attempt.slurm_nodes}" if attempt.slurm_nodes else ""
        node.add(
            f"{_at(attempt.started)} to {_at(attempt.ended)}: from step "
            f"{attempt.resumed_at_step}, {attempt.host}{job}{nodes}"
        )
    return node


def _at(seconds: float | None) -> str:
    if seconds is None:
        return "(end not known)"
    return time.strftime("%Y-%m-%d %H:%M:%S UTC", time.gmtime(seconds))
