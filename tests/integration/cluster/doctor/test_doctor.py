"""`smt doctor` where there is no SLURM: the rest is checked."""

import re
import shutil
import subprocess

import pytest

from tests.helpers.doctor_report import doctor
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.tracking_servers import free_port


@pytest.fixture(scope="module")
def project(tmp_path_factory):
    """A project as a user has it before the first launch."""
    project = ProjectCopy(tmp_path_factory.mktemp("doctor") / "project")
    (project.folder / "results").mkdir()
    return project


def test_on_a_laptop_without_slurm_the_rest_is_checked(project, tmp_path):
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path))
    assert (report.code, report.stderr) == (2, "")
    assert report.result("slurm") == (
        "error",
        "not on this machine: sbatch, squeue, scancel, scontrol; run this where jobs are submitted "
        "(a login node), or try a cluster of your own: make cluster",
    )
    assert report.subjects == {"slurm", "data", "disk", "inodes", "data disk", "mlflow"}


def test_missing_data_are_named(project, tmp_path):
    report = doctor(project, PATH=str(tmp_path))
    missing = [text for level, name, text in report.results if (level, name) == ("error", "data")]
    assert missing[0].startswith("not found: data/imagenet1k/train/ of imagenet1k; give the folder")


def test_a_disk_too_small_for_the_runs_is_an_error(project, small_disk, tmp_path):
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), SMT_RESULTS=str(small_disk))
    level, text = report.result("disk")
    assert level == "error"
    assert re.match(rf"0\.008\d+ GB free in {small_disk}, where 34 runs take about 0\.\d+ GB", text)


def test_too_few_inodes_for_the_runs_are_an_error(project, small_disk, tmp_path):
    subprocess.run(["mount", "-o", "remount,nr_inodes=100", small_disk], check=True)
    report = doctor(
        project, "--scale", "demo", PATH=str(tmp_path), SMT_RESULTS=str(small_disk),
        SMT_DATA=str(small_disk),
    )  # fmt: skip
    level, text = report.result("inodes")
    assert level == "error"
    assert text.startswith(f"99 free in {small_disk}, where 34 runs take 680 at least")
    assert report.result("data disk") == (
        "ok", f"0.00839 GB, 99 inodes free in {small_disk}"
    )  # fmt: skip


def test_a_full_data_folder_is_a_warning(project, small_disk, tmp_path):
    with (small_disk / "ballast").open("wb") as file:
        file.write(bytes(shutil.disk_usage(small_disk).free))
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), SMT_DATA=str(small_disk))
    level, text = report.result("data disk")
    assert level == "warning"
    assert text.startswith("0 GB, ") and "if data are to be made or packed" in text


def test_a_read_only_results_folder_is_an_error(project, read_only_folder, tmp_path):
    report = doctor(
        project, "--scale", "demo", PATH=str(tmp_path), SMT_RESULTS=str(read_only_folder)
    )
    assert report.result("disk")[0] == "error"
    assert report.result("mlflow")[0] == "error"


@pytest.mark.servers
def test_an_mlflow_server_that_answers_is_ok_and_one_that_does_not_an_error(
    project, tmp_path, mlflow
):
    host = mlflow.uri.removeprefix("http://")
    environment = {"PATH": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://user:secret@{host}"}
    assert doctor(project, "--scale", "demo", **environment).result("mlflow") == (
        "ok",
        f"{mlflow.uri} answers",
    )
    url = f"127.0.0.1:{free_port()}"
    environment["MLFLOW_TRACKING_URI"] = f"http://user:secret@{url}"
    level, text = doctor(project, "--scale", "demo", **environment).result("mlflow")
    assert level == "error"
    assert text.startswith(f"http://{url} does not answer: [Errno 111] Connection refused; start")


def test_a_database_that_does_not_answer_is_named_without_its_password(project, tmp_path):
    uri = "postgresql://me:secret@127.0.0.1:9/mlflow"
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    level, text = report.result("mlflow")
    assert level == "error"
    assert text.startswith("postgresql://me:***@127.0.0.1:9/mlflow does not answer: ")


def test_outside_of_the_project_the_error_says_where_to_run_it(project, tmp_path):
    report = doctor(project, folder=tmp_path)
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
