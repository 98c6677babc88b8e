"""What fewer processes than the recipe's micro-batches change of a training.

Gradients are averages over the global batch, whichever process takes which part of it, and the
BatchNorms of the trunk see a micro-batch each. What some heads take over all processes at once is
another value where these hold fewer images at once, because each accumulates micro-batches.
"""

from smt.config.project import Project


def deviation(project: Project, experiment: str, processes: int) -> str | None:
    """Return in a sentence how a training on so many processes is not the paper's; None if it is.

    The paper's holds all of a global batch at once: a micro-batch on each of its GPUs.
    """
    head, recipe = project.experiments[experiment].head, project.recipe_of(experiment)
    shared = project.heads[head].over_processes if head is not None else ""
    if not shared or processes >= recipe.micro_batches:
        return None
    return (
        f"not the paper's training: on {processes} GPU{'s' if processes > 1 else ''} instead of "
        f"{recipe.micro_batches}, {shared} of {processes * recipe.device_batch} images at once "
        f"instead of {recipe.global_batch}"
    )
