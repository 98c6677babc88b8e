"""`smt evaluate`: the exported weights, loaded on their own, give the numbers of the run."""

import click

from smt.commands.common import find_run, load, scale_option


@click.command()
@click.argument("experiment")
@click.option("--seed", type=int, default=None, help="Seed of the run [the first of the scale].")
@scale_option
def command(experiment: str, seed: int | None, scale: str) -> None:
    """Evaluate model.safetensors of a run; exit 4 if it does not give what metrics.json says."""
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
