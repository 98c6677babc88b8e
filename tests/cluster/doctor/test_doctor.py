"""`smt doctor` on a real SLURM: a working cluster, and one real fault in each test."""

import getpass
import platform
import re
import shutil
import subprocess
import sys

import pytest

from testbed.slurm import Cluster, Settings
from testbed.waiting import wait_for
from tests.helpers import ROOT, sshfs
from tests.helpers.doctor_report import Report, doctor
from tests.helpers.project_copy import ProjectCopy


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project as a user has it before the first launch."""
    project = ProjectCopy(tmp_path_factory.mktemp("doctor") / "project")
    (project.folder / "results").mkdir()
    return project


def doctor_for_demo(project, cluster, *arguments, **options):
    """Run `smt doctor` for the demo, whose jobs fit this cluster."""
    return doctor(project, "--scale", "demo", *arguments, cluster=cluster, **options)


def after_mounting(mount):
    """Return the prefix of a command that runs after `mount`, seen by nobody else."""
    prefix = ["unshare", "--mount", "sh", "-c", f'{mount} && exec "$@"', "sh"]
    if subprocess.run([*prefix, "true"], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    return prefix


def test_a_working_cluster_is_ready(project, cluster):
    report = doctor_for_demo(project, cluster)
    assert (report.code, report.stderr, report.errors) == (0, "", set())
    assert report.result("slurm")[1].endswith("cluster playground: the controller answers")
    assert report.result("partition") == ("ok", "gpu (the cluster's default): up, 2 nodes")
    assert report.result("request")[1].startswith("1 node with 1 GPU, 1 CPU")
    assert report.result("folder")[1] == f"n1 sees and writes {project.folder}/results"
    assert report.result("environment")[1].startswith("n1 runs the same: smt ")
    assert report.result("hosts")[1].startswith(
        "n1 and n2 compared what they see of each other's files ("
    )
    assert report.result("locks") == ("ok", "n1 and n2 exclude each other (lockf, flock)")
    assert report.result("gpu")[0] == "warning"  # the node's GPUs are not real
    assert report.result("exchange") == (
        "ok",
        "two processes on n1 exchange gradients through gloo, on its CPU",
    )
    assert {"account", "time limit", "preemption", "requeue", "job limits", "data", "disk",
            "mlflow"} <= report.subjects  # fmt: skip
    assert report.verdict == (
        "ready, 1 warning; next: snakemake --profile slurm all --config scale=demo"
    )
    assert list((project.folder / "results").iterdir()) == []
    assert cluster.run("squeue", "-h").stdout == ""


def test_in_a_partition_of_single_nodes_this_machine_and_a_node_compare(project, cluster):
    cluster.run("scontrol", "update", "partitionname=gpu", "maxnodes=1")
    try:
        report = doctor_for_demo(project, cluster)
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "maxnodes=unlimited")
    assert (report.code, report.errors) == (0, set())
    this_machine = platform.node()
    level, text = report.result("hosts")
    assert level == "ok"
    assert text.startswith(f"{this_machine} and n1 compared what they see of each other's files (")
    assert "no two nodes: allocation failure: Requested node configuration is not" in text
    assert report.result("locks") == (
        "ok",
        f"{this_machine} and n1 exclude each other (lockf, flock)",
    )
    assert list((project.folder / "results").iterdir()) == []
    assert cluster.run("squeue", "-h", "-t", "PENDING,RUNNING").stdout == ""


@pytest.mark.parametrize(
    ("arguments", "environment", "source"),
    [
        (["--partition", "gpuu"], {}, "--partition"),
        ([], {"SMT_PARTITION": "gpuu"}, "slurm_partition in workflow/profiles/slurm/config.yaml"),
    ],
)
def test_a_wrong_partition_is_named_with_its_source(
    project, cluster, arguments, environment, source
):
    report = doctor_for_demo(project, cluster, *arguments, **environment)
    assert (report.code, report.errors) == (2, {"partition"})
    assert report.result("partition")[1].startswith(
        f"gpuu ({source}): the cluster has none of this name; did you mean gpu?"
    )
    assert "folder" not in report.subjects
    assert report.verdict == "not ready: 1 error, 0 warnings"


def test_a_partition_that_is_down_is_an_error(project, cluster):
    cluster.run("scontrol", "update", "partitionname=cancel", "state=down")
    try:
        report = doctor_for_demo(project, cluster, "--partition", "cancel")
    finally:
        cluster.run("scontrol", "update", "partitionname=cancel", "state=up")
    assert report.result("partition")[0] == "error"
    assert "its state is DOWN" in report.result("partition")[1]


@pytest.mark.parametrize(
    ("arguments", "environment", "source"),
    [
        (["--account", "reserch"], {}, "--account"),
        ([], {"SMT_ACCOUNT": "reserch"}, "slurm_account in workflow/profiles/slurm/config.yaml"),
    ],
)
def test_a_wrong_account_is_named_with_its_source(project, cluster, arguments, environment, source):
    report = doctor_for_demo(project, cluster, *arguments, **environment)
    assert (report.code, report.errors) == (2, {"account"})
    assert report.result("account")[1].startswith(
        f"reserch ({source}): not one of this user's; did you mean research?"
    )


def test_sbatch_variables_in_the_environment_are_ignored(project, cluster):
    """The executor removes them for sbatch: they would override the resources of a rule."""
    environment = {"SBATCH_PARTITION": "gpuu", "SBATCH_ACCOUNT": "reserch", "SQUEUE_USERS": "none"}
    report = doctor_for_demo(project, cluster, "--no-job", **environment)
    assert (report.code, report.errors) == (0, set())


def test_a_valid_account_passes(project, cluster):
    report = doctor_for_demo(project, cluster, "--no-job", "--account", "research")
    assert report.result("account") == ("ok", "research (--account)")


def test_more_gpus_than_a_node_has_are_refused(project, cluster):
    """The paper's trainings request 8 GPUs a node; these nodes have 4."""
    report = doctor(project, "--no-job", cluster=cluster)
    errors = [text for level, name, text in report.results if (level, name) == ("error", "request")]
    assert report.code == 2
    assert errors[0].startswith("1 node with 8 GPUs")
    assert "refused: allocation failure: Requested node configuration is not" in errors[0]
    assert "params/cluster.yaml" in errors[0]


def test_a_partition_with_a_short_time_limit_is_an_error(project, cluster):
    """SLURM itself accepts such a job and leaves it pending for ever."""
    cluster.run("scontrol", "update", "partitionname=gpu", "maxtime=12")
    try:
        report = doctor_for_demo(project, cluster, "--no-job")
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "maxtime=unlimited")
    assert report.result("time limit") == (
        "error",
        "0.5 h asked for, 00:12:00 at most in gpu; set wall_hours: 0.2 in params/cluster.yaml",
    )


@pytest.mark.parametrize(
    ("partition", "text"),
    [
        ("gpu", "jobs in gpu have 5 s to save, and are requeued"),
        ("grace", "jobs in grace have 15 s to save, and are requeued"),
        ("cancel", "jobs in cancel have 5 s to save, and are cancelled, then submitted again"),
        ("high", "jobs in high are not preempted"),
    ],
)
def test_the_preemption_of_each_partition_is_described(project, cluster, partition, text):
    report = doctor_for_demo(project, cluster, "--no-job", "--partition", partition)
    assert report.result("preemption") == ("ok", text)


def test_a_limit_below_the_jobs_of_snakemake_is_a_warning(project, cluster):
    limit = ["sacctmgr", "-i", "modify", "user", getpass.getuser(), "set"]
    cluster.run(*limit, "maxsubmitjobs=7")
    try:
        report = doctor_for_demo(project, cluster, "--no-job")
    finally:
        cluster.run(*limit, "maxsubmitjobs=-1")
    level, _, text = next(check for check in report.results if check[1] == "job limits")
    assert level == "warning"
    assert "allows 7 submitted jobs, and Snakemake may submit 100; set jobs: 7" in text


def test_a_results_folder_on_a_local_disk_is_an_error(project, cluster, tmp_path):
    """A file system in smt's own mount namespace, like a local disk of the login node."""
    mount_point = tmp_path / "own"
    mount_point.mkdir()
    private = after_mounting(f"mount -t tmpfs tmpfs {mount_point}")
    report = doctor_for_demo(project, cluster, prefix=private, SMT_RESULTS=str(mount_point))
    assert (report.code, report.errors) == (2, {"folder"})
    text = report.result("folder")[1]
    assert re.match(
        rf"n[12] cannot see and write {mount_point} as this machine does \(job \d+, ", text
    )
    assert text.endswith("give a folder that is on a shared disk: SMT_RESULTS")


def test_a_results_folder_on_sshfs_is_an_error(project, cluster, tmp_path):
    """smt and the node have a mount each of one folder, at the same path."""
    shared = tmp_path / "shared"
    shared.mkdir()
    cluster.run("scontrol", "update", "partitionname=gpu", "maxnodes=1")
    try:
        with (
            sshfs.mounted(shared, tmp_path / "node", "dcache_timeout=1") as on_the_node,
            sshfs.mounted(shared, tmp_path / "login", "dcache_timeout=1") as on_this_machine,
        ):
            private = after_mounting(f"mount --bind {on_this_machine} {on_the_node}")
            report = doctor_for_demo(project, cluster, prefix=private, SMT_RESULTS=str(on_the_node))
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "maxnodes=unlimited")
    assert (report.code, report.errors) == (2, {"locks"})
    assert "got the same lock at once (lockf, flock)" in report.result("locks")[1]
    assert list(shared.iterdir()) == []


def test_different_code_on_the_node_is_an_error(project, cluster, tmp_path):
    """smt is a changed copy on this machine; the job has no PYTHONPATH to it."""
    shutil.copytree(ROOT / "smt", tmp_path / "smt")
    with (tmp_path / "smt" / "engine" / "optim.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    environment = {"PYTHONPATH": str(tmp_path), "SMT_SBATCH": "--export=NONE"}
    report = doctor_for_demo(project, cluster, **environment)
    level, text = report.result("environment")
    assert (report.code, level) == (2, "error")
    assert f"n1 differs: smt 0.1.0 in {ROOT}/smt there, 0.1.0 in {tmp_path}/smt here" in text
    assert "smt/engine/optim.py has changed" in text


def test_a_python_on_a_local_disk_is_an_error(project, cluster, tmp_path):
    mount_point = tmp_path / "own"
    mount_point.mkdir()
    link = f"ln -s {sys.executable} {mount_point}/python"
    private = after_mounting(f"mount -t tmpfs tmpfs {mount_point} && {link}")
    program = "import sys; sys.executable = sys.argv.pop(1); from smt.cli import main; main()"
    command = [sys.executable, "-c", program, f"{mount_point}/python", "doctor", "--scale", "demo"]
    result = subprocess.run(
        [*private, *command],
        cwd=project.folder, env=cluster.environment(), capture_output=True, text=True,
    )  # fmt: skip
    report = Report(result)
    assert (report.code, report.errors) == (2, {"environment"})
    assert f"n1 cannot run {mount_point}/python -m smt: " in report.result("environment")[1]
    assert "not found" in report.result("environment")[1]


def test_a_job_that_waits_too_long_is_cancelled_with_a_warning(project, cluster, tmp_path):
    hold = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.run(*hold, "--wrap=sleep 600")
    wait_for(lambda: "R" in cluster.run("squeue", "-h", "-o", "%t").stdout)
    try:
        report = doctor_for_demo(project, cluster, "--wait", "4")
    finally:
        waiting = cluster.run("squeue", "-h", "--name=smt-doctor").stdout
        cluster.cancel_all()
    assert report.code == 0
    level, text = report.result("node")
    assert level == "warning"
    assert "was PENDING after 4 s (Resources), and is cancelled" in text
    assert waiting == ""


def test_no_signal_on_preemption_is_a_warning_and_no_cluster_an_error(
    project, cluster, tmp_path_factory
):
    """The fixture `cluster` skips the test where SLURM is not installed."""
    settings = Settings(accounting=False, signal_on_preemption=False)
    with Cluster(tmp_path_factory.mktemp("other"), settings, tied=True) as other:
        report = doctor_for_demo(project, other, "--no-job", "--partition", "grace")
    level, text = report.result("preemption")
    assert level == "warning"
    assert "ask who runs it for SlurmctldParameters=preempt_send_user_signal" in text
    assert "may cost 1 minutes (checkpoint_minutes" in text
    assert report.result("account")[0] == "warning"  # without accounting
    assert report.code == 0
    stopped_report = doctor_for_demo(project, other)
    assert (stopped_report.code, stopped_report.errors) == (2, {"slurm"})
    assert "the controller does not answer" in stopped_report.result("slurm")[1]
    assert "data" in stopped_report.subjects and "partition" not in stopped_report.subjects
