"""Join what came from the storage, under the names that it has there."""

from pathlib import Path

with Path(snakemake.output[0]).open("w") as file:  # noqa: F821
    for path in map(Path, snakemake.input):  # noqa: F821
        print(path.name, path.read_text(), file=file)
