"""Write down all that a script is given."""

import os
from pathlib import Path

from helper import described

with Path(snakemake.output[0]).open("w") as file:  # noqa: F821
    print(*described(snakemake), os.environ["EVERY_KIND"], sep="\n", file=file)  # noqa: F821
with Path(snakemake.log[0]).open("w") as file:  # noqa: F821
    print("done", file=file)
