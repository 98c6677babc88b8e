"""Whether SLURM is there, takes the jobs that the trainings will be, and what it does to them."""

from collections.abc import Mapping, Sequence

from smt.cluster.cost import Resources
from smt.cluster.doctor.check_result import CheckResult, CheckResults, error, ok, warning
from smt.cluster.doctor.request import PROFILE, Destination, described, of_training
from smt.cluster.slurm import Slurm, minutes
from smt.errors import suggest

Requests = Mapping[Resources, Sequence[str]]
"""What trainings ask for -> the experiments that do."""


def client(slurm: Slurm) -> CheckResults:
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


def partition(slurm: Slurm, destination: Destination) -> CheckResults:
    """The partition exists and takes jobs."""
    if destination.partition is None:
        if slurm.default_partition is None:
            yield error(
                "partition",
                "none is chosen, and the cluster has no default",
                f"set slurm_partition in {PROFILE}; {suggest('', slurm.partitions)}",
            )
            return
        names, source = [slurm.default_partition], "the cluster's default"
    else:
        names, source = destination.partition.value.split(","), destination.partition.source
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


def account(slurm: Slurm, destination: Destination) -> CheckResults:
    """The account is one of the user's, where that matters."""
    chosen = destination.account
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


def requests(slurm: Slurm, destination: Destination, asked: Requests) -> CheckResults:
    """Each kind of training would be taken and started some time."""
    for resources, experiments in asked.items():
        what = f"{described(resources)} ({_several(experiments)})"
        options = [*destination.options(), *of_training(resources)]
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


def time_limit(slurm: Slurm, destination: Destination, asked: Requests) -> CheckResults:
    """No training asks for more time than its partition gives: SLURM may let it wait for ever."""
    longest = max((resources.runtime for resources in asked), default=0)
    for name in partitions_of(slurm, destination):
        limit = slurm.partitions[name]["MaxTime"]
        text = f"{longest / 60:.3g} h asked for, {limit} at most in {name}"
        if longest > minutes(limit):
            hours = minutes(limit) / 60
            yield error("time limit", text, f"set wall_hours: {hours:g} in params/cluster.yaml")
        else:
            yield ok("time limit", text)


def partitions_of(slurm: Slurm, destination: Destination) -> list[str]:
    """Return the partitions that jobs go to, as far as they exist."""
    chosen = destination.partition.value if destination.partition else slurm.default_partition or ""
    return [name for name in chosen.split(",") if name in slurm.partitions]


def _several(experiments: Sequence[str]) -> str:
    first, *others = experiments
    return f"{first} and {len(others)} more" if others else first


_SIGNAL = "preempt_send_user_signal"

_FATES = {"REQUEUE": "requeued", "CANCEL": "cancelled, then submitted again"}
"""By PreemptMode: what SLURM and the executor make of a preempted job."""


def preemption(slurm: Slurm, destination: Destination, checkpoint_minutes: float) -> CheckResults:
    """A preempted training is told in time to save, or may lose `checkpoint_minutes`."""
    if slurm.config["PreemptType"] == "preempt/none":
        yield ok("preemption", "the cluster preempts no job")
        return
    for name in partitions_of(slurm, destination):
        yield _of_partition(slurm, name, checkpoint_minutes)


def _of_partition(slurm: Slurm, name: str, checkpoint_minutes: float) -> CheckResult:
    settings = slurm.partitions[name]
    by_qos = slurm.config["PreemptType"] == "preempt/qos"  # then it has the time, too
    mode = slurm.config["PreemptMode"] if by_qos else settings["PreemptMode"]
    if mode == "OFF":
        return ok("preemption", f"jobs in {name} are not preempted")
    if mode not in _FATES:
        return warning(
            "preemption",
            f"jobs in {name} are suspended ({mode}), and keep their GPUs' memory meanwhile",
            f"choose a partition that requeues in {PROFILE}, if there is one",
        )
    grace, kill_wait = int(settings["GraceTime"]), int(slurm.config["KillWait"].split()[0])
    time = "a time by their QOS" if by_qos else f"{grace + kill_wait} s"
    text = f"jobs in {name} have {time} to save, and are {_FATES[mode]}"
    if (grace or by_qos) and _SIGNAL not in slurm.config["SlurmctldParameters"]:
        return warning(
            "preemption",
            f"{text}; but the cluster does not send the signal to save that jobs ask for",
            f"ask who runs it for SlurmctldParameters={_SIGNAL}; without it a preemption may cost "
            f"{checkpoint_minutes:g} minutes (checkpoint_minutes in params/scales.yaml)",
        )
    return ok("preemption", text)


def requeue(slurm: Slurm) -> CheckResults:
    """Jobs may be requeued."""
    if slurm.config["JobRequeue"] == "1":
        yield ok("requeue", "allowed (JobRequeue=1)")
    else:
        yield ok("requeue", "allowed for jobs that ask for it, as these do (JobRequeue=0)")


def job_limits(slurm: Slurm, destination: Destination) -> CheckResults:
    """No limit on submitted jobs is below what Snakemake submits: SLURM refuses the rest."""
    if not slurm.has_accounting or "limits" not in slurm.enforced:
        yield ok("job limits", f"none but the cluster's own, {slurm.config['MaxJobCount']} jobs")
        return
    account, qos = destination.account, destination.choices.get("slurm_qos")
    limits = slurm.limits(account.value if account else None, qos.value if qos else "normal")
    too_low = [
        limit for limit in limits if destination.jobs and limit.submitted_jobs < destination.jobs
    ]
    for limit in too_low:
        yield warning(
            "job limits",
            f"{limit.name} allows {limit.submitted_jobs} submitted jobs, and Snakemake may submit "
            f"{destination.jobs}",
            f"set jobs: {limit.submitted_jobs} in {PROFILE}, for SLURM refuses the rest",
        )
    if not too_low:
        yield ok("job limits", f"none is below {destination.jobs or 'any number of'} jobs at once")
