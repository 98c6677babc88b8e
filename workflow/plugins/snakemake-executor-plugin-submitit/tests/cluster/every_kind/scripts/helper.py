"""What a script imports from beside it."""


def described(job):
    """Return a line for each thing that a job of Snakemake is given."""
    given = {name: value for name, value in job.resources.items() if not name.startswith("_")}
    return [
        *(f"{name}: {value!r}" for name, value in job.params.items()),
        repr(list(job.params)),
        repr(dict(job.input.items())),
        repr(sorted(given.items())),
        repr((job.threads, job.rule, dict(job.wildcards.items()), dict(job.config))),
    ]
