"""Checks of `params/` across entries: references, sums, cycles, duplicates of a training."""

from smt.config import fingerprint
from smt.config.cluster import ScaleShare
from smt.config.experiments import Experiment, Run
from smt.config.metrics import METRICS
from smt.config.models import TimmModel
from smt.config.numbers import valid_names
from smt.config.project import Project
from smt.config.published import ReportedValue
from smt.config.recipes import Recipe
from smt.config.released import RELEASE
from smt.config.sections import RECIPES, SECTIONS
from smt.config.types import divisors
from smt.config.yaml import KeyPath, YamlFile
from smt.errors import UserError, suggest

LAYOUTS = {"classify": "imagenet", "detect": "coco", "segment": "ade20k"}
"""Layout of the data sets of each task."""


class ConsistencyChecker:
    """Checks what one record cannot know of itself."""

    def __init__(self, project: Project, files: dict[str, YamlFile]) -> None:
        self.project = project
        self.files = files

    def check(self) -> None:
        for name, recipe in self.project.recipes.items():
            section = _section_of(recipe)
            self._require_entry(
                SECTIONS[section][0], (section, name, "dataset"), recipe.dataset, "datasets"
            )
        for name, class_map in self.project.class_maps.items():
            for key in ("source", "target"):
                self._require_entry(
                    "data", ("class_maps", name, key), getattr(class_map, key), "datasets"
                )
        for name, experiment in self.project.experiments.items():
            self._require_entry(
                "experiments", ("experiments", name, "model"), experiment.model, "models"
            )
            self._require_entry(
                "experiments", ("experiments", name, "recipe"), experiment.recipe, "recipes"
            )
            self._task(name, experiment)
            self._timm(name, experiment)
        for name in self.project.experiments:
            self._start(name)
        proof = self.project.scale.proof
        for index, proved in enumerate(proof.runs if proof else ()):
            path = (self.project.scale_name, "proof", "runs", index, "experiment")
            self._require_entry("scales", path, proved.experiment, "experiments")
        rung = self.project.scale.first_rung
        if rung is not None and rung not in self.files["scales"].data:
            valid = suggest(rung, self.files["scales"].data)
            where: KeyPath = (self.project.scale_name, "first_rung")
            raise self._fail("scales", where, f"no scale {rung!r}; {valid}")
        self._released()
        self._tables()
        self._reported()
        self._peers()
        self._claims()
        self._cluster()
        self._trajectory()
        self._require_distinct()

    def _fail(self, file: str, path: KeyPath, message: str) -> UserError:
        return UserError(f"{self.files[file].where(path)}: {message}")

    def _require_entry(self, file: str, path: KeyPath, name: str, section: str) -> None:
        valid = getattr(self.project, section)
        if name not in valid:
            kind = section.rstrip("s").replace("_", " ")
            raise self._fail(file, path, f"no {kind} {name!r}; {suggest(name, valid)}")

    def _task(self, name: str, experiment: Experiment) -> None:
        """Refuse a recipe, a head or a data set that is not of the experiment's task."""
        project, path = self.project, ("experiments", name)
        recipe = project.recipes[experiment.recipe]
        section = _section_of(recipe)
        if section != RECIPES[experiment.task]:
            file = SECTIONS[RECIPES[experiment.task]][0]
            valid = [
                recipe_name
                for recipe_name in project.recipes
                if _section_of(project.recipes[recipe_name]) == RECIPES[experiment.task]
            ]
            raise self._fail(
                "experiments", (*path, "recipe"),
                f"{experiment.recipe} is of {section}, but this experiment's task is "
                f"{experiment.task}; valid, from {file}.yaml: {', '.join(valid)}",
            )  # fmt: skip
        heads = [each for each, head in project.heads.items() if head.task == experiment.task]
        if experiment.task == "classify":
            if experiment.head is not None:
                raise self._fail("experiments", (*path, "head"), "a classifier has none; remove it")
        elif experiment.head not in heads:
            raise self._fail(
                "experiments", (*path, "head"),
                f"no head {experiment.head!r} for the task {experiment.task}; "
                f"{suggest(str(experiment.head), heads)}",
            )  # fmt: skip
        dataset = project.datasets[recipe.dataset]
        if dataset.layout != LAYOUTS[experiment.task]:
            raise self._fail(
                "experiments", (*path, "recipe"),
                f"{experiment.recipe} trains on {recipe.dataset}, whose layout is "
                f"{dataset.layout}; the task {experiment.task} needs {LAYOUTS[experiment.task]}",
            )  # fmt: skip

    def _timm(self, name: str, experiment: Experiment) -> None:
        """Refuse a drop path of a model of timm that was seen not to be there."""
        project, model = self.project, self.project.models[experiment.model]
        if not isinstance(model, TimmModel):
            return
        size = project.timm_size(model, project.recipe_of(name))
        if size is not None and not size.drop_path and project.drop_path(name):
            raise self._fail(
                "experiments", ("experiments", name, "drop_path"),
                f"{model.timm} of timm has no branches that could be dropped; valid: 0",
            )  # fmt: skip

    def _start(self, name: str) -> None:
        project = self.project
        start = project.experiments[name].start
        path = ("experiments", name, "start")
        if start is None:
            return
        self._require_entry("experiments", (*path, "experiment"), start.experiment, "experiments")
        chain = [name]
        for ancestor in project.ancestors(name):
            if ancestor in chain:
                raise self._fail(
                    "experiments",
                    path,
                    "experiments start from each other in a cycle: "
                    f"{' -> '.join((*chain, ancestor))}",
                )
            chain.append(ancestor)
        parent = project.experiments[start.experiment]
        if parent.model != project.experiments[name].model:
            raise self._fail(
                "experiments",
                path,
                f"{start.experiment} trains {parent.model}, this one "
                f"{project.experiments[name].model}; valid: an experiment of the same model",
            )
        if parent.task != "classify":
            raise self._fail(
                "experiments", (*path, "experiment"),
                f"{start.experiment} is of the task {parent.task}; valid: one that classifies",
            )  # fmt: skip
        if project.experiments[name].task != "classify":
            if start.class_map is not None:
                raise self._fail(
                    "experiments", (*path, "class_map"),
                    "only the backbone is taken over, which has no classes; valid: null",
                )  # fmt: skip
            return
        source, target = project.dataset_of(start.experiment), project.dataset_of(name)
        if start.class_map is None:
            if project.datasets[source].classes != project.datasets[target].classes:
                raise self._fail(
                    "experiments",
                    (*path, "class_map"),
                    f"null, but {source} has {project.datasets[source].classes} classes and "
                    f"{target} {project.datasets[target].classes}; name a class map of data.yaml",
                )
            return
        self._require_entry("experiments", (*path, "class_map"), start.class_map, "class_maps")
        class_map = project.class_maps[start.class_map]
        if (class_map.source, class_map.target) != (source, target):
            raise self._fail(
                "experiments",
                (*path, "class_map"),
                f"{start.class_map} goes from {class_map.source} to {class_map.target}, "
                f"this experiment from {source} to {target}",
            )

    def _released(self) -> None:
        """Refuse released weights of an experiment without classes, or an unknown preprocessing."""
        project = self.project
        if RELEASE in project.preprocessings:
            raise self._fail(
                "released", ("preprocessings", RELEASE),
                "this name stands for the recipe's own; give it another",
            )  # fmt: skip
        for name, entry in project.released.items():
            path: KeyPath = ("released", name)
            self._require_entry("released", path, name, "experiments")
            valid = project.evaluated_classifiers
            if name not in valid:
                raise self._fail(
                    "released", path,
                    f"{name} is no SMT that classifies validation images; {suggest(name, valid)}",
                )  # fmt: skip
            valid_keys = (RELEASE, *project.preprocessings)
            if entry.preprocessing not in valid_keys:
                raise self._fail(
                    "released", (*path, "preprocessing"),
                    f"no preprocessing {entry.preprocessing!r}; "
                    f"{suggest(entry.preprocessing, valid_keys)}",
                )  # fmt: skip

    def _require_distinct(self) -> None:
        """Refuse two names of one training: the fingerprint names a run, so both would be one."""
        names: dict[str, str] = {}
        for name in self.project.experiments:
            run = Run(experiment=name, seed=0)
            data = {key: key for key in fingerprint.inputs(self.project, run)}
            first = names.setdefault(fingerprint.fingerprint(self.project, run, data), name)
            if first != name:
                raise self._fail(
                    "experiments", ("experiments", name),
                    f"at scale {self.project.scale_name} it trains exactly what {first} does; "
                    f"let tables.yaml name {first} in both places, or give one of them another "
                    "model, recipe, drop_path, head or start, here or in scales.yaml",
                )  # fmt: skip

    def _tables(self) -> None:
        for name, table in self.project.tables.items():
            for index, row in enumerate(table.rows):
                row_path = ("tables", name, "rows", index, "experiment")
                self._require_entry("tables", row_path, row.experiment, "experiments")
                measured = self.project.metrics_of(row.experiment)
                if not set(measured) & set(table.metrics):
                    raise self._fail(
                        "tables", row_path,
                        f"{row.experiment} has none of this table's metrics, "
                        f"{', '.join(table.metrics)}; it has: {', '.join(measured)}",
                    )  # fmt: skip
            if table.baseline is not None:
                self._require_entry(
                    "tables", ("tables", name, "baseline"), table.baseline, "experiments"
                )

    def _reported(self) -> None:
        reported = self.project.reported
        for section in ("experiments", "models", "systems"):
            for name, metrics in getattr(reported, section).items():
                self._require_entry("reported", (section, name), name, section)
                for metric, entry in metrics.items():
                    if section == "experiments":
                        self._require_measured(name, metric)
                    self._require_table_of((section, name, metric, "derived_for"), name, entry)
                    self._require_source(
                        "reported", (section, name, metric, "source"), entry.source
                    )

        for name, rate in reported.throughput.items():
            path: KeyPath = ("throughput", name)
            table, _, peer = name.partition(".")
            others = self.project.peer_tables.get(table)
            if name not in self.project.models and (others is None or peer not in others.peers):
                peers = (f"{each}.{key}" for each, content in self.project.peer_tables.items()
                         for key in content.peers)  # fmt: skip
                close = suggest(name, [*self.project.models, *peers])
                raise self._fail("reported", path, f"no model or peer {name!r}; {close}")
            self._require_source("reported", (*path, "source"), rate.source)

    def _require_source(self, file: str, path: KeyPath, name: str) -> None:
        sources = self.project.reported.sources
        if name not in sources:
            valid = suggest(name, sources)
            raise self._fail(file, path, f"no source {name!r} in reported.yaml; {valid}")

    def _peers(self) -> None:
        for table, content in self.project.peer_tables.items():
            path: KeyPath = ("peer_tables", table)
            for index, name in enumerate(content.experiments):
                self._require_entry("peers", (*path, "experiments", index), name, "experiments")
            for name, peer in content.peers.items():
                self._require_source("peers", (*path, "peers", name, "source"), peer.source)
                if peer.experiment is not None:
                    place = (*path, "peers", name, "experiment")
                    self._require_entry("peers", place, peer.experiment, "experiments")

    def _claims(self) -> None:
        valid = frozenset(valid_names(self.project))
        for name, claim in self.project.claims.items():
            self._require_source("claims", ("claims", name, "source"), claim.source)
            for number in claim.names:
                if number not in valid:
                    raise self._fail(
                        "claims", ("claims", name, "formula"),
                        f"no number {number!r}; {suggest(number, valid)}",
                    )  # fmt: skip
        for metric in self.project.assumed_spreads:
            if metric not in METRICS:
                raise self._fail(
                    "claims", ("assumed_spreads", metric),
                    f"no metric {metric!r}; {suggest(metric, METRICS)}",
                )  # fmt: skip

    def _require_measured(self, name: str, metric: str) -> None:
        """Refuse a published number of a metric that the experiment's evaluation does not give."""
        valid = self.project.metrics_of(name)
        if metric not in valid:
            raise self._fail(
                "reported", ("experiments", name, metric),
                f"{name} is not evaluated by it; {suggest(metric, valid)}",
            )  # fmt: skip

    def _require_table_of(self, path: KeyPath, name: str, entry: ReportedValue) -> None:
        """Refuse a derived number for a table without a row of its experiment."""
        tables = self.project.tables
        valid = [
            table for table in tables if name in (row.experiment for row in tables[table].rows)
        ]
        for index, table in enumerate(entry.derived_for):
            if table not in valid:
                raise self._fail(
                    "reported", (*path, index),
                    f"no table {table!r} with a row of {name}; {suggest(table, valid)}",
                )  # fmt: skip

    def _trajectory(self) -> None:
        valid = (self.files["scales"].data, self.project.experiments, self.project.reported.sources)
        for path, problem in self.project.trajectory.reference_problems(*valid):
            raise self._fail("trajectory", path, problem)

    def _cluster(self) -> None:
        cluster, scale = self.project.cluster, self.project.scale_name
        problem = cluster.problem_of(cluster.gpu)
        if problem is not None:
            raise self._fail("cluster", ("gpu",), problem)
        for model in cluster.speed.models:
            self._require_entry("cluster", ("speed", "models", model), model, "models")
        for kind, gpu in cluster.kinds.items():
            for index, name in enumerate(gpu.recompute):
                path = ("kinds", kind, "recompute", index)
                self._require_entry("cluster", path, name, "experiments")
                if self.project.experiments[name].model not in self.project.smt_models:
                    raise self._fail(
                        "cluster", path, f"{name}: only an SMT can be computed again; remove it"
                    )
                if self.project.recipe_of(name).compiles:
                    raise self._fail(
                        "cluster", path, f"{name}: its recipe has compile: true; valid: one of both"
                    )
        for name, share in cluster.scales.items():
            if name not in self.files["scales"].data:
                valid = suggest(name, self.files["scales"].data)
                raise self._fail("cluster", ("scales", name), f"no scale {name!r}; {valid}")
            for section in ("recipes", "experiments"):
                for entry in getattr(share, section):
                    self._require_entry("cluster", ("scales", name, section, entry), entry, section)
        if scale not in cluster.scales:
            raise self._fail(
                "cluster", ("scales", scale), "this key is missing; give it gpus, startup_minutes"
            )
        if cluster.useful_hours(scale) <= 0:
            least = cluster.wall_hours - cluster.useful_hours(scale)
            raise self._fail(
                "cluster",
                ("wall_hours",),
                f"{cluster.wall_hours:g} leaves no time to train between start-up and tail "
                f"(at scale {scale}); valid: more than {least:.3g}",
            )
        for name in self.project.experiments:
            self._gpus(name, cluster.scales[scale])

    def _gpus(self, name: str, share: ScaleShare) -> None:
        """Refuse GPUs that cannot share the micro-batches of an experiment, as training would."""
        recipe = self.project.experiments[name].recipe
        micro_batches = self.project.recipes[recipe].micro_batches
        gpus, key = share.gpus_of(name, recipe)
        if micro_batches % gpus:
            raise self._fail(
                "cluster",
                ("scales", self.project.scale_name, *key),
                f"{gpus} GPUs cannot share the {micro_batches} micro-batches that make a global "
                f"batch of recipe {recipe} ({name}); valid: {divisors(micro_batches)}, here or "
                "for it "
                f"alone (scales.{self.project.scale_name}.recipes.{recipe}.gpus)",
            )


def _section_of(recipe: Recipe) -> str:
    return next(name for name in RECIPES.values() if type(recipe) is SECTIONS[name][1])
