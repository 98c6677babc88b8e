"""Whether SLURM is there and takes the jobs that the trainings will be."""

from collections.abc import Mapping, Sequence

from smt.cluster.cost import Resources
from smt.cluster.doctor.finding import Findings, error, ok, warning
from smt.cluster.doctor.request import PROFILE, Destination, described, of_training
from smt.cluster.slurm import Slurm, minutes
from smt.errors import suggest

Requests = Mapping[Resources, Sequence[str]]
"""What trainings ask for -> the experiments that do."""


def client(slurm: Slurm) -> Findings:
    """SLURM's programs are here, and their controller answers."""
    missing = slurm.missing()
    if missing:
        yield error(
            "slurm",
            f"not on this machine: {', '.join(missing)}",
            "run this where jobs are submitted (a login node), or try a cluster of your own: "
            "make cluster",
        )
        return
    answer = slurm.ask("scontrol", "ping")
    if not answer.succeeded or "UP" not in answer.text:
        yield error(
            "slurm",
            f"the controller does not answer: {answer.reason}",
            "see that SLURM_CONF, if set, names this cluster's slurm.conf; else ask who runs it",
        )
        return
    name, version = slurm.config["ClusterName"], slurm.config["SLURM_VERSION"]
    yield ok("slurm", f"{version}, cluster {name}: the controller answers")


def partition(slurm: Slurm, wanted: Destination) -> Findings:
    """The partition exists and takes jobs."""
    if wanted.partition is None:
        if slurm.default_partition is None:
            yield error(
                "partition",
                "none is chosen, and the cluster has no default",
                f"set slurm_partition in {PROFILE}; {suggest('', slurm.partitions)}",
            )
            return
        names, source = [slurm.default_partition], "the cluster's default"
    else:
        names, source = wanted.partition.value.split(","), wanted.partition.source
    for name in names:
        if name not in slurm.partitions:
            yield error(
                "partition",
                f"{name} ({source}): the cluster has none of this name",
                f"{suggest(name, slurm.partitions)}; set slurm_partition in {PROFILE}",
            )
        elif (state := slurm.partitions[name]["State"]) != "UP":
            yield error(
                "partition",
                f"{name} ({source}): its state is {state}",
                "wait until it is up (sinfo), or choose another",
            )
        else:
            nodes = slurm.partitions[name]["TotalNodes"]
            yield ok("partition", f"{name} ({source}): up, {nodes} nodes")


def account(slurm: Slurm, wanted: Destination) -> Findings:
    """The account is one of the user's, where that matters."""
    chosen = wanted.account
    who = f"{chosen.value} ({chosen.source})" if chosen else "the default of this user"
    if not slurm.has_accounting:
        yield warning(
            "account",
            "the cluster keeps no accounts, and no record of jobs that ended",
            "nothing to do; what became of a job is told from its log alone",
        )
        return
    known = slurm.accounts()
    if chosen is not None and chosen.value not in known and "associations" in slurm.enforced:
        yield error(
            "account",
            f"{who}: not one of this user's",
            f"{suggest(chosen.value, known)}; set slurm_account in {PROFILE}",
        )
        return
    yield ok("account", who)


def requests(slurm: Slurm, wanted: Destination, asked: Requests) -> Findings:
    """Each kind of training would be taken and started some time."""
    for resources, experiments in asked.items():
        what = f"{described(resources)} ({_several(experiments)})"
        options = [*wanted.options(), *of_training(resources)]
        answer = slurm.ask("sbatch", "--test-only", *options, "--wrap=true")
        if answer.succeeded:
            yield ok("request", f"{what}: accepted")
        else:
            yield error(
                "request",
                f"{what}: refused: {answer.reason}",
                "ask for less in params/cluster.yaml (gpus, gpus_per_node, wall_hours), or choose "
                f"another partition in {PROFILE}",
            )


def time_limit(slurm: Slurm, wanted: Destination, asked: Requests) -> Findings:
    """No training asks for more time than its partition gives: SLURM may let it wait for ever."""
    longest = max((resources.runtime for resources in asked), default=0)
    for name in partitions_of(slurm, wanted):
        limit = slurm.partitions[name]["MaxTime"]
        text = f"{longest / 60:.3g} h asked for, {limit} at most in {name}"
        if longest > minutes(limit):
            hours = minutes(limit) / 60
            yield error("time limit", text, f"set wall_hours: {hours:g} in params/cluster.yaml")
        else:
            yield ok("time limit", text)


def partitions_of(slurm: Slurm, wanted: Destination) -> list[str]:
    """Return the partitions that jobs go to, as far as they exist."""
    chosen = wanted.partition.value if wanted.partition else slurm.default_partition or ""
    return [name for name in chosen.split(",") if name in slurm.partitions]


def _several(experiments: Sequence[str]) -> str:
    first, *others = experiments
    return f"{first} and {len(others)} more" if others else first
