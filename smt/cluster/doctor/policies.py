"""What the cluster does to jobs that are preempted, requeued, or too many."""

from smt.cluster.doctor.finding import Finding, Findings, ok, warning
from smt.cluster.doctor.request import PROFILE, Destination
from smt.cluster.doctor.scheduler import partitions_of
from smt.cluster.slurm import Slurm

_SIGNAL = "preempt_send_user_signal"

_FATES = {"REQUEUE": "requeued", "CANCEL": "cancelled, then submitted again"}
"""By PreemptMode: what SLURM and the executor make of a preempted job."""


def preemption(slurm: Slurm, wanted: Destination, checkpoint_minutes: float) -> Findings:
    """A preempted training is told in time to save, or may lose `checkpoint_minutes`."""
    if slurm.config["PreemptType"] == "preempt/none":
        yield ok("preemption", "the cluster preempts no job")
        return
    for name in partitions_of(slurm, wanted):
        yield _of_partition(slurm, name, checkpoint_minutes)


def _of_partition(slurm: Slurm, name: str, checkpoint_minutes: float) -> Finding:
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


def requeue(slurm: Slurm) -> Findings:
    """Jobs may be requeued."""
    if slurm.config["JobRequeue"] == "1":
        yield ok("requeue", "allowed (JobRequeue=1)")
    else:
        yield ok("requeue", "allowed for jobs that ask for it, as these do (JobRequeue=0)")


def job_limits(slurm: Slurm, wanted: Destination) -> Findings:
    """No limit on submitted jobs is below what Snakemake submits: SLURM refuses the rest."""
    if not slurm.has_accounting or "limits" not in slurm.enforced:
        yield ok("job limits", f"none but the cluster's own, {slurm.config['MaxJobCount']} jobs")
        return
    account, qos = wanted.account, wanted.choices.get("slurm_qos")
    limits = slurm.limits(account.value if account else None, qos.value if qos else "normal")
    too_low = [limit for limit in limits if wanted.jobs and limit.submitted_jobs < wanted.jobs]
    for limit in too_low:
        yield warning(
            "job limits",
            f"{limit.name} allows {limit.submitted_jobs} submitted jobs, and Snakemake may submit "
            f"{wanted.jobs}",
            f"set jobs: {limit.submitted_jobs} in {PROFILE}, for SLURM refuses the rest",
        )
    if not too_low:
        yield ok("job limits", f"none is below {wanted.jobs or 'any number of'} jobs at once")
