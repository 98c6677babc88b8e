"""`smt doctor` where there is no SLURM: the rest is checked."""

import re

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
    assert report.of("slurm") == (
        "error",
        "not on this machine: sbatch, squeue, scancel, scontrol; run this where jobs are submitted "
        "(a login node), or try a cluster of your own: make cluster",
    )
    assert report.subjects == {"slurm", "data", "disk", "mlflow"}


def test_data_that_nobody_brought_is_named(project, tmp_path):
    report = doctor(project, PATH=str(tmp_path))
    missing = [text for level, name, text in report.results if (level, name) == ("error", "data")]
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


@pytest.mark.servers
def test_an_mlflow_server_that_runs_and_one_that_does_not(project, tmp_path, mlflow):
    host = mlflow.uri.removeprefix("http://")
    ask = {"PATH": str(tmp_path), "MLFLOW_TRACKING_URI": f"http://user:secret@{host}"}
    assert doctor(project, "--scale", "demo", **ask).of("mlflow") == ("ok", f"{mlflow.uri} answers")
    url = f"127.0.0.1:{free_port()}"
    ask["MLFLOW_TRACKING_URI"] = f"http://user:secret@{url}"
    level, text = doctor(project, "--scale", "demo", **ask).of("mlflow")
    assert level == "error"
    assert text.startswith(f"http://{url} does not answer: [Errno 111] Connection refused; start")


def test_a_database_that_does_not_answer_without_its_password(project, tmp_path):
    uri = "postgresql://me:secret@127.0.0.1:9/mlflow"
    report = doctor(project, "--scale", "demo", PATH=str(tmp_path), MLFLOW_TRACKING_URI=uri)
    level, text = report.of("mlflow")
    assert level == "error"
    assert text.startswith("postgresql://me:***@127.0.0.1:9/mlflow does not answer: ")


def test_outside_of_the_project_it_says_where_to_run_it(project, tmp_path):
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
