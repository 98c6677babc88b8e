"""`smt doctor`: what it says where all is well, and where something really is not."""

import getpass
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import time

import pytest

from smt import params
from smt.doctor import storage
from smt.doctor.slurm import minutes
from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.slurm import Cluster, Settings
from tests.helpers.waiting import PATIENCE, wait_for_answer

LINE = re.compile(r"(ok|warning|error)\s+(slurm|[a-z]+(?: [a-z]+)?)\s{2,}(.+)")
ON_A_CLUSTER = pytest.mark.xdist_group("cluster")


class Report:
    """What a run of `smt doctor` printed."""

    def __init__(self, done):
        self.code, self.stderr = done.returncode, done.stderr
        *lines, self.verdict = done.stdout.splitlines() or [""]
        self.found = [LINE.fullmatch(line).groups() for line in lines]

    def of(self, subject):
        """Return level and text of the one finding on `subject`."""
        ((level, text),) = [(level, text) for level, name, text in self.found if name == subject]
        return level, text

    @property
    def subjects(self):
        return {name for _, name, _ in self.found}

    @property
    def errors(self):
        return {name for level, name, _ in self.found if level == "error"}


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project as a user has it before the first launch."""
    project = ProjectCopy(tmp_path_factory.mktemp("doctor") / "project")
    (project.folder / "results").mkdir()
    return project


def doctor(project, *arguments, cluster=None, prefix=(), **environment):
    """Run `smt doctor` as a user of `cluster` does."""
    kept = cluster.environment() if cluster else {**os.environ, "SLURM_CONF": "/nowhere"}
    kept = {name: value for name, value in kept.items() if not name.startswith(("SMT_", "MLFLOW"))}
    return Report(
        subprocess.run(
            [*prefix, sys.executable, "-m", "smt", "doctor", *arguments],
            cwd=project.folder, env={**kept, **environment}, capture_output=True, text=True,
        )
    )  # fmt: skip


def rehearsal(project, cluster, *arguments, **options):
    """Run it for the demo's launch, which this cluster can take."""
    return doctor(project, "--scale", "demo", *arguments, cluster=cluster, **options)


@ON_A_CLUSTER
def test_before_a_rehearsal_on_a_cluster_all_is_well(project, cluster):
    report = rehearsal(project, cluster)
    assert (report.code, report.stderr, report.errors) == (0, "", set())
    assert report.of("slurm")[1].endswith("cluster playground: the controller answers")
    assert report.of("partition") == ("ok", "gpu (the cluster's default): up, 2 nodes")
    assert report.of("request")[1].startswith("1 node with 1 GPU, 1 CPU")
    assert report.of("folder")[1] == f"n1 sees and writes {project.folder}/results"
    assert report.of("environment")[1].startswith("n1 runs the same: smt ")
    assert report.of("gpu")[0] == "warning"  # the node's GPUs are not real
    assert {"account", "time limit", "preemption", "requeue", "job limits", "data", "disk",
            "mlflow"} <= report.subjects  # fmt: skip
    assert report.verdict == (
        "ready, 1 warning; next: snakemake --profile slurm all --config scale=demo"
    )
    assert list((project.folder / "results").iterdir()) == []
    assert cluster.run("squeue", "-h").stdout == ""


@ON_A_CLUSTER
@pytest.mark.parametrize(
    ("arguments", "environment", "source"),
    [
        (["--partition", "gpuu"], {}, "--partition"),
        ([], {"SBATCH_PARTITION": "gpuu"}, "SBATCH_PARTITION"),
        ([], {"SMT_PARTITION": "gpuu"}, "slurm_partition in workflow/profiles/slurm/config.yaml"),
    ],
)
def test_a_wrong_partition_is_named_with_who_chose_it(
    project, cluster, arguments, environment, source
):
    report = rehearsal(project, cluster, *arguments, **environment)
    assert (report.code, report.errors) == (2, {"partition"})
    assert report.of("partition")[1].startswith(
        f"gpuu ({source}): the cluster has none of this name; did you mean gpu?"
    )
    assert "folder" not in report.subjects
    assert report.verdict == "not ready: 1 error, 0 warnings"


@ON_A_CLUSTER
def test_a_partition_that_is_down(project, cluster):
    cluster.run("scontrol", "update", "partitionname=cancel", "state=down")
    try:
        report = rehearsal(project, cluster, "--partition", "cancel")
    finally:
        cluster.run("scontrol", "update", "partitionname=cancel", "state=up")
    assert report.of("partition")[0] == "error"
    assert "its state is DOWN" in report.of("partition")[1]


@ON_A_CLUSTER
@pytest.mark.parametrize(
    ("arguments", "environment", "source"),
    [
        (["--account", "reserch"], {}, "--account"),
        ([], {"SBATCH_ACCOUNT": "reserch"}, "SBATCH_ACCOUNT"),
        ([], {"SMT_ACCOUNT": "reserch"}, "slurm_account in workflow/profiles/slurm/config.yaml"),
    ],
)
def test_a_wrong_account_is_named_with_who_chose_it(
    project, cluster, arguments, environment, source
):
    report = rehearsal(project, cluster, *arguments, **environment)
    assert (report.code, report.errors) == (2, {"account"})
    assert report.of("account")[1].startswith(
        f"reserch ({source}): not one of this user's; did you mean research?"
    )


@ON_A_CLUSTER
def test_the_right_account_is_taken(project, cluster):
    report = rehearsal(project, cluster, "--no-job", "--account", "research")
    assert report.of("account") == ("ok", "research (--account)")


@ON_A_CLUSTER
def test_more_gpus_than_a_node_has_are_refused(project, cluster):
    """The paper's trainings ask for 8 of a node; these have 4."""
    report = doctor(project, "--no-job", cluster=cluster)
    refused = [text for level, name, text in report.found if (level, name) == ("error", "request")]
    assert report.code == 2
    assert refused[0].startswith("1 node with 8 GPUs")
    assert "refused: allocation failure: Requested node configuration is not" in refused[0]
    assert "params/cluster.yaml" in refused[0]


@ON_A_CLUSTER
def test_a_time_limit_below_what_trainings_ask_for(project, cluster):
    """SLURM itself takes such a job, and lets it wait for ever."""
    cluster.run("scontrol", "update", "partitionname=gpu", "maxtime=12")
    try:
        report = rehearsal(project, cluster, "--no-job")
    finally:
        cluster.run("scontrol", "update", "partitionname=gpu", "maxtime=unlimited")
    assert report.of("time limit") == (
        "error",
        "0.5 h asked for, 00:12:00 at most in gpu; set wall_hours: 0.2 in params/cluster.yaml",
    )


@ON_A_CLUSTER
@pytest.mark.parametrize(
    ("partition", "text"),
    [
        ("gpu", "jobs in gpu have 5 s to save, and are requeued"),
        ("grace", "jobs in grace have 15 s to save, and are requeued"),
        ("cancel", "jobs in cancel have 5 s to save, and are cancelled, then submitted again"),
        ("high", "jobs in high are not preempted"),
    ],
)
def test_what_preemption_does_in_each_partition(project, cluster, partition, text):
    report = rehearsal(project, cluster, "--no-job", "--partition", partition)
    assert report.of("preemption") == ("ok", text)


@ON_A_CLUSTER
def test_a_limit_on_jobs_below_what_snakemake_submits(project, cluster):
    limit = ["sacctmgr", "-i", "modify", "user", getpass.getuser(), "set"]
    cluster.run(*limit, "maxsubmitjobs=7")
    try:
        report = rehearsal(project, cluster, "--no-job")
    finally:
        cluster.run(*limit, "maxsubmitjobs=-1")
    level, text = [(level, text) for level, name, text in report.found if name == "job limits"][0]
    assert level == "warning"
    assert "allows 7 submitted jobs, and Snakemake may submit 100; set jobs: 7" in text


@ON_A_CLUSTER
def test_a_results_folder_that_only_this_machine_has(project, cluster, tmp_path):
    """A file system that is mounted for smt alone, as a disk of the login node's own."""
    own = tmp_path / "own"
    own.mkdir()
    mount = f'mount -t tmpfs tmpfs {own} && exec "$@"'
    private = ["unshare", "--mount", "sh", "-c", mount, "sh"]
    if subprocess.run([*private, "true"], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    report = rehearsal(project, cluster, prefix=private, SMT_RESULTS=str(own))
    assert (report.code, report.errors) == (2, {"folder"})
    text = report.of("folder")[1]
    assert re.match(rf"n[12] cannot see and write {own} as this machine does \(job \d+, ", text)
    assert text.endswith("give a folder that is on a shared disk: SMT_RESULTS")


@ON_A_CLUSTER
def test_other_code_on_the_node_than_here(project, cluster, tmp_path):
    """Here smt is a changed copy, which the job, without this environment, does not get."""
    shutil.copytree(ROOT / "smt", tmp_path / "smt")
    with (tmp_path / "smt" / "engine" / "optim.py").open("a") as file:
        file.write("\nCHANGED = 1\n")
    environment = {"PYTHONPATH": str(tmp_path), "SBATCH_EXPORT": "NONE"}
    report = rehearsal(project, cluster, **environment)
    level, text = report.of("environment")
    assert (report.code, level) == (2, "error")
    assert f"n1 differs: smt 0.1.0 in {ROOT}/smt there, 0.1.0 in {tmp_path}/smt here" in text
    assert "smt/engine/optim.py has changed" in text


@ON_A_CLUSTER
def test_a_python_that_only_this_machine_has(project, cluster, tmp_path):
    own = tmp_path / "own"
    own.mkdir()
    link = f"mount -t tmpfs tmpfs {own} && ln -s {sys.executable} {own}/python && exec "
    private = ["unshare", "--mount", "sh", "-c"]
    if subprocess.run([*private, f"mount -t tmpfs tmpfs {own}"], capture_output=True).returncode:
        pytest.skip("mounting a file system needs root")
    program = "import sys; sys.executable = sys.argv.pop(1); from smt.cli import main; main()"
    command = f"{sys.executable} -c '{program}' {own}/python doctor --scale demo"
    done = subprocess.run(
        [*private, f"{link} {command}"],
        cwd=project.folder, env=cluster.environment(), capture_output=True, text=True,
    )  # fmt: skip
    report = Report(done)
    assert (report.code, report.errors) == (2, {"environment"})
    assert f"n1 cannot run {own}/python -m smt: " in report.of("environment")[1]
    assert "not found" in report.of("environment")[1]


@ON_A_CLUSTER
def test_a_job_that_waits_too_long_is_cancelled_and_said(project, cluster, tmp_path):
    hold = ["sbatch", "--partition=high", "--nodes=2", "--exclusive", "--output=/dev/null"]
    cluster.run(*hold, "--parsable", "--wrap=sleep 600")
    while "R" not in cluster.run("squeue", "-h", "-o", "%t").stdout:
        time.sleep(0.1)
    try:
        report = rehearsal(project, cluster, "--wait", "2")
    finally:
        waiting = cluster.run("squeue", "-h", "--name=smt-doctor").stdout
        cluster.run("scancel", "--me")
    assert report.code == 0
    level, text = report.of("node")
    assert level == "warning"
    assert "was PENDING after 2 s (Resources), and is cancelled" in text
    assert waiting == ""


@ON_A_CLUSTER
def test_a_cluster_that_keeps_the_signal_to_save_to_itself_then_none(
    project, cluster, tmp_path_factory
):
    """`cluster` is not used; it says that SLURM is installed."""
    settings = Settings(accounting=False, signal_on_preemption=False)
    with Cluster(tmp_path_factory.mktemp("other"), settings, tied=True) as other:
        report = rehearsal(project, other, "--no-job", "--partition", "grace")
    level, text = report.of("preemption")
    assert level == "warning"
    assert "ask who runs it for SlurmctldParameters=preempt_send_user_signal" in text
    assert "may cost 1 minutes (checkpoint_minutes" in text
    assert report.of("account")[0] == "warning"  # without accounting
    assert report.code == 0
    gone = rehearsal(project, other)
    assert (gone.code, gone.errors) == (2, {"slurm"})
    assert "the controller does not answer" in gone.of("slurm")[1]
    assert "data" in gone.subjects and "partition" not in gone.subjects


def test_on_a_laptop_without_slurm_the_rest_is_checked(project, tmp_path):
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path))
    assert (report.code, report.stderr) == (2, "")
    assert report.of("slurm") == (
        "error",
        "not on this machine: sbatch, squeue, scancel, scontrol; run this where jobs are submitted "
        "(a login node), or try a cluster of your own: make cluster",
    )
    assert report.subjects == {"slurm", "data", "disk", "mlflow"}


def test_data_that_nobody_brought_is_named(project, tmp_path):
    report = doctor(project, PATH=str(tmp_path))
    missing = [text for level, name, text in report.found if (level, name) == ("error", "data")]
    assert missing[0].startswith("not found: data/imagenet1k/train/ of imagenet1k; give the folder")


def test_a_disk_too_small_for_the_runs(project, small_disk, tmp_path):
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), SMT_RESULTS=str(small_disk))
    level, text = report.of("disk")
    assert level == "error"
    assert re.match(rf"0\.008\d+ GB free in {small_disk}, where 32 runs take about 0\.\d+ GB", text)


def test_a_results_folder_that_cannot_be_written(project, read_only_folder, tmp_path):
    report = doctor(
        project, "--scale", "demo", PATH=str(tmp_path), SMT_RESULTS=str(read_only_folder)
    )
    assert report.of("disk")[0] == "error"
    assert report.of("mlflow")[0] == "error"


def test_an_mlflow_server_that_runs_and_then_does_not(project, tmp_path):
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    url = f"http://127.0.0.1:{port}"
    command = [sys.executable, "-m", "smt", "ui", "--scale", "demo", "--port", str(port)]
    environment = {**os.environ, "SMT_RESULTS": str(tmp_path / "results")}
    ask = {"PATH": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://user:secret@127.0.0.1:{port}"}
    with (tmp_path / "ui.log").open("w") as log:
        ui = subprocess.Popen(command, cwd=project.folder, env=environment, stdout=log, stderr=log)
    try:
        wait_for_answer(f"{url}/health", ui, tmp_path / "ui.log")
        runs = doctor(project, "--scale", "demo", **ask)
    finally:
        ui.send_signal(signal.SIGTERM)
        ui.wait(timeout=PATIENCE)
    assert runs.of("mlflow") == ("ok", f"{url} answers")
    level, text = doctor(project, "--scale", "demo", **ask).of("mlflow")
    assert level == "error"
    assert text.startswith(f"{url} does not answer: [Errno 111] Connection refused; start it, or")


def test_a_database_that_does_not_answer_without_its_password(project, tmp_path):
    uri = "postgresql://me:secret@127.0.0.1:9/mlflow"
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    level, text = report.of("mlflow")
    assert level == "error"
    assert text.startswith("postgresql://me:***@127.0.0.1:9/mlflow does not answer: ")


def test_outside_of_the_project_it_says_where_to_run_it(project, tmp_path):
    report = doctor(project, prefix=("env", f"--chdir={tmp_path}"))
    assert report.code == 2
    assert "smt: error: workflow/profiles/slurm/config.yaml: no such file" in report.stderr
    assert len(report.stderr.splitlines()) == 1


def test_a_profile_that_cannot_be_read_is_one_line(project, tmp_path):
    broken = project.copy(tmp_path / "broken")
    profile = broken.folder / "workflow" / "profiles" / "slurm" / "config.yaml"
    profile.write_text("__use_yte__: true\njobs: ?1/0\n")
    report = doctor(broken, PATH=str(tmp_path))
    assert report.code == 2
    assert "workflow/profiles/slurm/config.yaml: cannot be read: " in report.stderr
    assert len(report.stderr.splitlines()) == 1


@pytest.mark.parametrize("model", ["smt_tiny", "smt_small", "smt_base", "smt_large"])
def test_the_estimate_of_a_models_weights_is_close(model):
    from smt.models import zoo

    found = params.load_project(ROOT / "params", "paper").models[model]
    real = sum(each.numel() for each in zoo.skeleton(found, num_classes=1000).parameters())
    assert storage.weights(found, 1000) == pytest.approx(real, rel=0.02)


@pytest.mark.parametrize(
    ("limit", "expected"),
    [
        ("00:12:00", 12),
        ("1-00:00:00", 24 * 60),
        ("7-01:30:30", 7 * 24 * 60 + 90.5),
        ("UNLIMITED", float("inf")),
    ],
)
def test_a_time_limit_as_slurm_prints_it(limit, expected):
    assert minutes(limit) == expected


def test_a_detector_takes_room_for_its_head():
    from smt.downstream import sizes
    from smt.spec import Run

    project = params.load_project(ROOT / "params", "paper")
    name = "coco_sparse_rcnn_smt_small"
    system = project.systems["sparse_rcnn.smt_small"]
    model, head = project.models[system.model], project.heads[system.head]
    counted = sizes.downstream_counts(model, head, system.classes, system.size).parameters
    # Weights, and in each of three checkpoints weights and both moments of AdamW.
    real = 4 * counted * (3 * 3 + 1)
    assert storage.run_bytes(project, Run(experiment=name, seed=0)) == pytest.approx(real, rel=0.03)
