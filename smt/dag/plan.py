"""Inputs, outputs and params of the jobs of the DAG, from `params/`.

The rule files hold patterns and commands; everything that depends on `params/` is
here. Imported at every start of Snakemake, so it imports neither torch nor pandas.
"""

import json
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache, cached_property
from pathlib import Path
from typing import Any

from smt.cluster import cost, queue, states
from smt.config import fingerprint
from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.recipes import ClassificationRecipe
from smt.config.yaml import YamlFile
from smt.dag.report import EVERYTHING, ReportPlan, digest_of
from smt.dag.selection import Selection
from smt.datasets import manifest, scan
from smt.datasets.packs import record
from smt.errors import DataError, UserError
from smt.report.build import CLAIMS, FIXED, INDEX
from smt.runs import rehearsals, source
from smt.runs.atomic import sha256
from smt.runs.paths import PICTURES_RECORD, Layout, default_params
from smt.runs.state import State

TRAINING_RULES = ("pretrain", "finetune", "ablation", "detect", "segment")
"""Rules that train: their jobs are the runs, and their first output is the run's final numbers."""


MAKE_EVERY_TABLE = frozenset(("all", "tables", "report"))
"""Targets that every table is part of."""


def scales() -> tuple[str, ...]:
    """Return the names of all scales in `params/`."""
    return tuple(YamlFile(default_params() / "scales.yaml").data)


def pattern(names: Iterable[str]) -> str:
    """Return a regular expression that matches exactly `names`, or nothing at all."""
    return "|".join(names) or "(?!)"


@dataclass(frozen=True)
class Plan(Selection):
    """The DAG of one scale."""

    @cached_property
    def report(self) -> ReportPlan:
        """Tables, figures and the report."""
        return ReportPlan(self.project, self.layout, self.only_seeds)

    def training_inputs(self, run: Run) -> list[str]:
        """Return the manifests of `run`, and its parent's numbers and weights."""
        parent = self.project.parent(run)
        if parent is None:
            return self.training_manifests(run)
        parent_files = [str(self.layout.metrics(parent)), str(self.layout.weights(parent))]
        return self.training_manifests(run) + parent_files

    def training_manifests(self, run: Run) -> list[str]:
        """Return the manifests of the data that `run` and all its ancestors read."""
        return [self.manifest(key) for key in fingerprint.inputs(self.project, run)]

    def fingerprint(self, run: Run) -> str:
        """Return the fingerprint of `run`.

        Raises:
            FileNotFoundError: a manifest among `training_inputs(run)` is not there yet; Snakemake
                shows such a parameter as <TBD> and asks again before the job starts.
        """
        keys = fingerprint.inputs(self.project, run)
        digests = {key: _digest(self.manifest(key)) for key in keys}
        return fingerprint.fingerprint(self.project, run, digests)

    def training_memory_mb(self) -> int:
        """Return the memory to ask for: torch with a model and its batch, and each data worker."""
        return 1500 * (1 + self.project.scale.expected_workers)

    def resources(self, run: Run) -> cost.Resources:
        """Return the resources of the training of `run` on a cluster."""
        memory = self.training_memory_mb()
        return cost.resources(self.project, run.experiment, task_memory_mb=memory)

    def job_comment(self, run: Run) -> str:
        """Return the comment by which `smt status` knows the job that trains `run`.

        Raises:
            FileNotFoundError: as `fingerprint` does.
        """
        return queue.comment(self.layout.scale, run, self.fingerprint(run))

    def failures(self) -> dict[str, str]:
        """Return, for each run that has failed, why."""
        run_states = states.read(self.project, self.layout)
        return {
            str(run): run_states[run].reason
            for run in self.runs()
            if run_states[run].state is State.FAILED
        }

    def released_file(self, experiment: str) -> Path:
        """Return the file of released weights that params name."""
        file = self.project.released[experiment].file
        assert file is not None
        return self.layout.data_file(file)

    def released_content(self, experiment: str) -> str:
        """Return a digest of what decides an evaluation of released weights: params and the file.

        The file is no input: Snakemake would look at its time, and name it in many lines where it
        is missing.
        """
        project, file = self.project, self.released_file(experiment)
        entry, recipe = project.released[experiment], project.recipe_of(experiment)
        assert isinstance(recipe, ClassificationRecipe)
        return digest_of(
            [
                _sha256(file, file.stat().st_mtime_ns) if file.is_file() else None,
                entry.model_dump(mode="json"),
                [recipe.resolution, recipe.evaluation.model_dump(mode="json")],
                {name: it.model_dump(mode="json") for name, it in project.preprocessings.items()},
                project.models[project.experiments[experiment].model].model_dump(mode="json"),
            ]
        )

    def released_inputs(self, experiment: str) -> list[str]:
        """Return the manifest of images that the scale makes itself; [] for the user's."""
        key = self.project.dataset_of(experiment)
        own = self.project.released[experiment].data is None
        return [self.manifest(key)] if own and self.is_generated(key) else []

    def missing_released(self, experiment: str) -> list[str]:
        """Return one phrase for each file or folder that an evaluation of a file would lack."""
        entry, dataset = self.project.released[experiment], self.project.dataset_of(experiment)
        folder = self.layout.dataset_root(self.project.datasets[dataset]) / "val"
        if entry.data is not None:
            folder = self.layout.data_file(entry.data)
        elif Path(self.manifest(dataset)).exists():
            folder = folder.parent  # a pack has no val/
        places = {"file": self.released_file(experiment)}
        if not self.released_inputs(experiment):
            places["data"] = folder
        if entry.labels is not None:
            places["labels"] = self.layout.data_file(entry.labels)
        return [
            f"{path} of released.{experiment}.{key}"
            for key, path in places.items()
            if not path.exists()
        ]

    def proofs(self) -> list[str]:
        """Return the record of each proof of the scale."""
        proving = self.project.scale.proof
        if proving is None:
            return []
        return [
            str(self.layout.proof_record(Run(experiment=entry.experiment, seed=seed), entry.ranks))
            for entry in proving.runs
            for seed in self.project.seeds(entry.experiment)[:1]
        ]

    def proof_kills(self) -> int:
        """Return the number of kills of each run that the scale proves."""
        assert self.project.scale.proof is not None
        return self.project.scale.proof.kills

    def rehearsals(self) -> list[str]:
        """Return what was rehearsed of each experiment."""
        return [str(self.layout.rehearsal(name)) for name in self.project.order]

    def rehearsal_content(self, experiment: str) -> str:
        """Return a digest of what decides a rehearsal: params, code, recomputation, micro-batch."""
        recomputes = self.project.recomputes(experiment, on_gpu=True)
        images = self.project.recipe_of(experiment).device_batch
        return digest_of([rehearsals.key(self.project, experiment), recomputes, images])

    # --- data ----------------------------------------------------------------------------------

    @cached_property
    def data_keys(self) -> dict[str, str]:
        """Keys of all data sets and class maps, by the stem of their manifest's file name."""
        return {Path(self.manifest(key)).stem: key for key in manifest.keys(self.project)}

    @property
    def needed_data(self) -> tuple[str, ...]:
        """Keys of the data that experiments read: not everything in params has to be provided."""
        return manifest.keys_in_use(self.project)

    def manifest(self, key: str) -> str:
        """Return the manifest of a data set, or of a class map given as `class_map:NAME`."""
        return str(manifest.manifest_path(self.layout, key))

    def is_generated(self, key: str) -> bool:
        """Return whether this scale generates the data set or class map itself."""
        return manifest.make_command(self.project, key) is not None

    def manifest_inputs(self, stem: str) -> list[str]:
        """Return the marker that data made at this scale have been made; [] for the user's."""
        generated = self.is_generated(self.data_keys[stem])
        return [str(self.layout.root / "data" / f"{stem}.made")] if generated else []

    def data_content(self, key: str) -> dict[str, Any]:
        """Return the expected content of a data set or class map, without its path."""
        if key.startswith(manifest.CLASS_MAP):
            class_map = self.project.class_maps[key.removeprefix(manifest.CLASS_MAP)]
            return class_map.model_dump(mode="json", exclude={"path"})
        return self.project.datasets[key].model_dump(
            mode="json",
            exclude={"title", "root", "source", "also_published"},
            exclude_defaults=True,
        )

    def missing_data(self, key: str) -> list[str]:
        """Return one phrase for each folder or file of a data set that is not there at all."""
        command = manifest.make_command(self.project, key)
        remedy = f" (run: {command})" if command else ""
        if key.startswith(manifest.CLASS_MAP):
            name = key.removeprefix(manifest.CLASS_MAP)
            path = self.layout.data_file(self.project.class_maps[name].path)
            return [] if path.is_file() else [f"{path} of {key}{remedy}"]
        dataset = self.project.datasets[key]
        root = self.layout.dataset_root(dataset)
        if scan.is_packed(dataset, root):
            return _pack_problems(key, root)
        places = [
            root / place
            for split in scan.expected_images(dataset)
            for place in scan.required_paths(dataset.layout, split)
        ]
        return [
            f"{place}{'' if place.suffix else '/'} of {key}{remedy}"
            for place in places
            if not (place.is_file() if place.suffix else place.is_dir())
        ]

    def run_data(self, run: Run) -> list[str]:
        """Return the keys of the data set that `run` reads, and of its class map if it has one."""
        start = self.project.experiments[run.experiment].start
        keys = [self.project.dataset_of(run.experiment)]
        if start is not None and start.class_map is not None:
            keys.append(f"{manifest.CLASS_MAP}{start.class_map}")
        return keys


def source_digest() -> str:
    """Return a digest of the code that trains: a proof holds for this code."""
    return digest_of(source.digests())


def load(scale: str, seeds: Iterable[int | str] | None = None) -> Plan:
    """Return the plan of `scale`, with only the runs of `seeds` where they are given.

    Raises:
        UserError: params that do not validate, or a seed that no experiment of the scale has.
    """
    project = load_project(default_params(), scale)
    valid_seeds = {run.seed for run in project.runs}
    selected = None if seeds is None else tuple(int(seed) for seed in seeds)
    for seed in selected or ():
        if seed not in valid_seeds:
            valid = ", ".join(map(str, sorted(valid_seeds)))
            raise UserError(f"--config: seeds: scale {scale} has no seed {seed}; valid: {valid}")
    return Plan(project, Layout.from_environment(scale), selected)


def _pack_problems(key: str, root: Path) -> list[str]:
    """Return the reason why a packed data set cannot be read, or nothing."""
    try:
        record.require_whole(record.read(root))
    except DataError as error:
        return [f"a whole pack of {key} ({error})"]
    return []


def plans(seeds: Iterable[int | str] | None = None) -> Callable[[str], Plan]:
    """Return a function that gives the plan of a scale, each loaded once."""
    return cache(lambda scale: load(scale, seeds))


def missing_data(jobs: Iterable[Any], plan: Callable[[str], Plan]) -> str | None:
    """Return one line on data that `jobs` of Snakemake would read and that are missing."""
    jobs = list(jobs)
    generated = {
        (job.wildcards.scale, job.params.key) for job in jobs if job.rule.name == "demo_data"
    }
    needed = {(job.wildcards.scale, key): None for job in jobs for key in _data_of(job, plan)}
    missing = [
        phrase
        for scale, key in needed
        if (scale, key) not in generated
        for phrase in plan(scale).missing_data(key)
    ]
    missing += [
        phrase
        for job in jobs
        if job.rule.name == "evaluate_released"
        for phrase in plan(job.wildcards.scale).missing_released(job.wildcards.experiment)
    ]
    if not missing:
        return None
    return (
        f"data not found: {', '.join(missing)}; give the folder that holds them as SMT_DATA, or "
        "their places in params/data.yaml, of released weights in params/released.yaml"
    )


def _data_of(job: Any, plan: Callable[[str], Plan]) -> list[str]:
    if job.rule.name == "manifest":
        return [job.params.key]
    if seed := job.wildcards.get("seed"):
        run = Run(experiment=job.wildcards.experiment, seed=int(seed))
        return plan(job.wildcards.scale).run_data(run)
    return []


def forbid_names(plan: Plan, rule_names: Iterable[str]) -> None:
    """Refuse experiments named like a rule, for each is a target, and tables named like a page.

    Raises:
        UserError: naming the experiment or the table.
    """
    for name in plan.project.order:
        if name in rule_names:
            raise UserError(
                f"params/experiments.yaml: experiments.{name}: the DAG has a rule of this name; "
                "give the experiment another"
            )
    taken = [*FIXED, CLAIMS, INDEX, EVERYTHING]
    for file, section in (("tables", "tables"), ("peers", "peer_tables")):
        for name in getattr(plan.project, section):
            if name in taken:
                raise UserError(
                    f"params/{file}.yaml: {section}.{name}: this name has a meaning already; give "
                    "the table another"
                )
            taken.append(name)


def paths() -> Mapping[str, str]:
    """Return the patterns of all output files, with wildcards in place of names."""
    layout = Layout.from_environment("{scale}")
    run = Run.model_construct(experiment="{experiment}", seed="{seed}")
    return {
        "root": str(layout.root),
        "manifest": str(layout.manifest("{data}")),
        "made": str(layout.root / "data" / "{data}.made"),
        "metrics": str(layout.metrics(run)),
        "weights": str(layout.weights(run)),
        "evaluation": str(layout.evaluation(run)),
        "released": str(layout.released("{experiment}")),
        "samples": str(layout.samples(run)),
        "proof": str(layout.proof),
        "proved": str(layout.proof_record(run, "{ranks}")),
        "sizes": str(layout.sizes),
        "synced": str(layout.root / "sync" / "{selection}.done"),
        "tables": str(layout.tables),
        "figures": str(layout.figures),
        "pictures": str(layout.pictures(run)),
        "pictured": str(layout.pictures(run) / PICTURES_RECORD),
        "report": str(layout.report),
        "rehearsals": str(layout.rehearsals),
        "rehearsal": str(layout.rehearsal("{experiment}")),
    }


@cache
def _sha256(path: Path, _mtime_ns: int) -> str:
    return sha256(path)


def _digest(manifest: str) -> str:
    return _read_digest(manifest, Path(manifest).stat().st_mtime_ns)


@cache
def _read_digest(manifest: str, _mtime_ns: int) -> str:
    digest = json.loads(Path(manifest).read_text())["digest"]
    assert isinstance(digest, str)
    return digest
