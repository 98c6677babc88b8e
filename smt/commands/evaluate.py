"""`smt evaluate`: the exported weights of a run, or released weights, evaluated on their own."""

import sys
from pathlib import Path
from typing import TYPE_CHECKING

import click

from smt.commands.classifier import RELEASED_SCALE, SIDE
from smt.commands.common import default_scale, find_run, load
from smt.config.load import require_experiments
from smt.config.metrics import METRICS
from smt.config.project import Project
from smt.engine import requeue
from smt.engine.preempt import StopRequest
from smt.errors import EXIT_RESUME, UserError, suggest

if TYPE_CHECKING:
    from smt.runs.paths import Layout
    from smt.runs.released import ReleasedEvaluation

_FOR_RELEASED = "With --released: "


@click.command()
@click.argument("experiment", required=False)
@click.option("--seed", type=int, default=None, help="Seed of the run [the first of the scale].")
@click.option(
    "--released",
    "file",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help="Evaluate the weights of FILE, a released checkpoint, in place of a run's.",
)
@click.option("--model", help=_FOR_RELEASED + "its model, in place of EXPERIMENT.")
@click.option(
    "--data",
    type=click.Path(path_type=Path),
    metavar="FOLDER",
    help=_FOR_RELEASED + "a folder of images a class, or one with val/ [the data set's].",
)
@click.option(
    "--labels",
    type=click.Path(path_type=Path),
    metavar="FILE",
    help=_FOR_RELEASED + "the class folders in the order of the weights' classes, one a line "
    "[sorted by name].",
)
@click.option(
    "--preprocessing",
    metavar="KEY",
    help=_FOR_RELEASED + "release, or an entry of preprocessings in params/released.yaml "
    "[release: as the recipe has it].",
)
@click.option(
    "--resolution",
    type=SIDE,
    help=_FOR_RELEASED + "side of the square that the model sees, in pixels.",
)
@click.option(
    "--images",
    type=click.IntRange(min=1),
    help=_FOR_RELEASED + "a random sample of so many, for an estimate with its interval [all].",
)
@click.option(
    "--state", metavar="KEY", help=_FOR_RELEASED + "which weights of a file with several."
)
@click.option(
    "--scale",
    help="Scale of params/scales.yaml [SMT_SCALE, else demo; with --released paper].",
)
def command(
    experiment: str | None,
    seed: int | None,
    file: Path | None,
    scale: str | None,
    **options: str | int | Path | None,
) -> None:
    """Evaluate model.safetensors of a run; exit 4 if it does not give what metrics.json says.

    With --released FILE: evaluate the authors' weights for EXPERIMENT, or for a --model, by the
    evaluation that trainings have. The number stands in the tables beside the published one. It may
    be interrupted: the same command goes on, also from a sample (--images) to all images.
    """
    if file is None:
        for name, value in options.items():
            if value is not None:
                raise UserError(f"--{name}: valid only with --released FILE")
        if experiment is None:
            raise UserError("name an EXPERIMENT of params/experiments.yaml, or --released FILE")
        _evaluate_run(experiment, seed, scale or default_scale())
        return
    if seed is not None:
        raise UserError("--seed: released weights have none; leave it out")
    # Paths of the command line are below the working folder, those of params below the data folder.
    given = {
        name: str(value.absolute()) if isinstance(value, Path) else value
        for name, value in options.items()
    }
    _evaluate_released(experiment, file, given, scale or RELEASED_SCALE)


def _evaluate_run(experiment: str, seed: int | None, scale: str) -> None:
    project, layout = load(scale)
    run = find_run(project, experiment, seed)

    from smt.engine import distributed
    from smt.tasks.evaluation import evaluate

    ranks = distributed.start(project.scale.threads, project.recipe_of(experiment))
    try:
        metrics = evaluate(project, layout, run, ranks)
    finally:
        distributed.stop()
    if ranks.is_first:
        numbers = ", ".join(f"{name} {value:.3f}" for name, value in metrics.items())
        files = [str(layout.evaluation(run))]
        if project.experiments[run.experiment].head is not None:
            files += [str(layout.samples(run)), f"{layout.predictions(run)}/"]
        click.echo(f"{run}: {numbers or 'no validation split'}; {', '.join(files)}")


def _evaluate_released(
    experiment: str | None, file: Path, options: dict[str, str | int | None], scale: str
) -> None:
    stop = StopRequest().install()  # before torch is imported, which takes seconds
    project, layout = load(scale)
    model = options.pop("model")
    assert model is None or isinstance(model, str)
    name = _experiment_of(project, experiment, model)

    from smt.engine import distributed
    from smt.tasks import released

    settings = released.with_changes(project.released.get(name), **options)
    ranks = distributed.start(released.threads(project))
    try:
        if ranks.world_size > 1:
            raise UserError("--released: one process alone; start it without torchrun or srun")
        task = released.prepare(project, layout, name, file, settings)
        for note in task.weights.checkpoint.notes:
            click.echo(f"{file}: {note}", err=True)
        result = released.evaluate(task, project, ranks, stop)
    except released.EvaluationStopped as stopped:
        requeue.request_requeue()
        click.echo(f"smt: {stopped}; the same command goes on", err=True)
        sys.exit(EXIT_RESUME)
    finally:
        distributed.stop()
    _print(project, layout, result)


def _experiment_of(project: Project, experiment: str | None, model: str | None) -> str:
    """Return the experiment in whose place weights are evaluated."""
    valid = project.evaluated_classifiers
    if experiment is not None:
        require_experiments(project, (experiment,))
        if experiment not in valid:
            raise UserError(
                f"{experiment} is no SMT that classifies validation images; "
                f"{suggest(experiment, valid)}"
            )
        own = project.experiments[experiment].model
        if model not in (None, own):
            raise UserError(f"--model {model}: {experiment} is of {own}; leave one of them out")
        return experiment
    if model is None:
        raise UserError("--released: name the EXPERIMENT that FILE is of, or its --model")
    if model not in project.smt_models:
        valid_models = suggest(model, project.smt_models)
        raise UserError(f"--model: no model {model!r} in params/models.yaml; {valid_models}")
    of_model = [name for name in valid if project.experiments[name].model == model]
    released = [name for name in of_model if name in project.released]
    candidates = released or of_model
    if len(candidates) != 1:
        names = " and ".join(candidates) or "no experiment"
        raise UserError(
            f"--model {model}: is that of {names}; name the one that FILE is of: smt evaluate "
            "EXPERIMENT --released FILE"
        )
    return candidates[0]


def _print(project: Project, layout: "Layout", result: "ReleasedEvaluation") -> None:
    from smt.report.released import with_interval

    dataset = project.datasets[project.dataset_of(result.experiment)]
    own_classes = result.data.classes == dataset.classes
    numbers = []
    for name in result.metrics:
        text = f"{METRICS[name].name} {with_interval(result, name)}"
        reported = project.reported_value(result.experiment, name)
        if reported is not None and project.scale.notice is None and own_classes:
            text += f", published {reported.value}"
        numbers.append(text)
    data = result.data
    of = f"a random sample of {result.images:,} of {data.images:,} images" if (
        result.is_estimate
    ) else f"{result.images:,} images"  # fmt: skip
    click.echo(f"{result.experiment}, released weights {result.weights.path}")
    click.echo(f"  sha256  {result.weights.sha256}")
    click.echo(f"  result  {'; '.join(numbers)}")
    used = result.preprocessing
    how = "squashed" if used.resize == "squash" else f"centre, crop ratio {used.crop_ratio:g}"
    click.echo(f"  images  {of} in {data.root}, at {used.resolution} ({used.name}: {how})")
    if result.is_estimate:
        click.echo(f"  interval  {result.interval}; sample of seed {result.sample_seed}")
    click.echo(f"  record  {layout.released(result.experiment)}, {result.predictions}")
    if project.scale.notice is not None:
        click.echo(project.scale.notice)
    click.echo(f"tables have it after: smt tables --scale {layout.scale}")
