"""A job of several nodes and tasks: its command runs once, and srun in it starts all ranks."""

import sys

RANKS = f"""
rule r:
    output: "r.txt"
    resources: mem_mb=600, runtime=5, nodes=2, tasks_per_node=2, cpus_per_task=2, gpus_per_node=2
    shell:
        "echo once >> shell.txt; srun {sys.executable} -c '"
        "import os; print(*[os.environ.get(name) for name in "
        "(\\"SLURM_PROCID\\", \\"SLURM_NTASKS\\", \\"SLURMD_NODENAME\\", \\"SLURM_LOCALID\\", "
        "\\"SLURM_CPUS_PER_TASK\\", \\"MASTER_ADDR\\", \\"MASTER_PORT\\")])' > {{output}}"
"""


def test_the_command_runs_once_and_srun_starts_all_ranks(toy):
    toy.write(RANKS)
    toy.succeed()
    assert (toy.folder / "shell.txt").read_text() == "once\n"
    lines = sorted(line.split() for line in (toy.folder / "r.txt").read_text().splitlines())
    assert [line[0] for line in lines] == ["0", "1", "2", "3"]
    assert [line[2] for line in lines] == ["n1", "n1", "n2", "n2"]
    assert [line[3] for line in lines] == ["0", "1", "0", "1"]
    assert {(line[1], line[4], line[5]) for line in lines} == {("4", "2", "127.0.0.1")}
    (port,) = {line[6] for line in lines}
    assert 1024 < int(port) < 65536
