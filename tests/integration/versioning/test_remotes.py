"""DVC's remotes: an S3 endpoint that is really spoken to, and that fails in the middle."""

import shutil
import subprocess

import pytest

from tests.helpers import s3_server
from tests.helpers.finished_project import CHILD, run_dir

pytestmark = [
    pytest.mark.servers,
    pytest.mark.xdist_group("s3"),  # one server for all of them
    pytest.mark.usefixtures("server"),  # asked for before anything is trained
]

PLACE = f"s3://{s3_server.BUCKET}/results"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s3_server.require_s3()
    server = s3_server.S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(server, monkeypatch, request):
    """A place of its own on the server, and the environment of a user of it."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    server.door.open()
    return server, f"{PLACE}/{request.node.name}"


def with_remote(project, s3):
    """Give a clone its remote as the README says: in git no more than nothing."""
    server, place = s3
    project.dvc("remote", "add", "--local", "--default", "s3", place)
    project.dvc("remote", "modify", "--local", "s3", "endpointurl", server.url)
    return project


@pytest.fixture
def project(finished, tmp_path, s3):
    project = with_remote(finished.copied(tmp_path / "project"), s3)
    yield project
    shutil.rmtree(project.folder)


def cloned(project, folder, s3):
    """Return a clone that has S3 alone: no local remote lies beside it."""
    return with_remote(project.cloned(folder), s3)


def objects(project):
    return {path.name for path in (project.folder / ".dvc/cache/files/md5").rglob("*/*")}


def weights(project):
    return run_dir(project, CHILD).joinpath("model.safetensors").read_bytes()


def test_pushed_to_s3_and_pulled_elsewhere_neither_has_anything_to_do(project, tmp_path, s3):
    project.dvc("push")
    assert "in sync" in project.dvc("status", "--cloud").stdout
    clone = cloned(project, tmp_path / "elsewhere" / "clone", s3)
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert weights(clone) == weights(project)
    assert clone.is_left_alone()
    assert clone.dvc("status", "--cloud").stdout == project.dvc("status", "--cloud").stdout


def test_a_push_that_fails_in_the_middle_is_resumed(project, s3):
    door = s3[0].door
    door.open("PUT", limit=5)
    broken = project.dvc("push", "--jobs", "1", check=False)
    assert door.is_shut and broken.returncode != 0
    door.open("PUT")
    project.dvc("push")
    assert 0 < door.count <= len(objects(project)) - 5
    assert "in sync" in project.dvc("status", "--cloud").stdout
    door.open("PUT")
    project.dvc("push")
    assert door.count == 0


def test_a_pull_that_fails_in_the_middle_is_resumed_and_what_came_is_whole(project, tmp_path, s3):
    project.dvc("push")
    clone = cloned(project, tmp_path / "elsewhere" / "clone", s3)
    door = s3[0].door
    door.open("GET", limit=12)
    broken = clone.smt("dvc", "restore")
    assert door.is_shut and broken.returncode == 2
    assert "nothing is lost: run the same command again" in broken.stderr
    door.open("GET")
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert weights(clone) == weights(project)
    assert clone.is_left_alone()


def test_an_object_that_was_changed_on_the_remote_is_not_taken(project, tmp_path, s3):
    lone = run_dir(project, CHILD) / "model.safetensors"
    project.dvc("push")
    digest = subprocess.run(["md5sum", str(lone)], capture_output=True, text=True).stdout[:32]
    server, place = s3
    key = f"{place}/files/md5/{digest[:2]}/{digest[2:]}".removeprefix(f"s3://{s3_server.BUCKET}/")
    server.client().head_object(Bucket=s3_server.BUCKET, Key=key)  # that is where it lies
    server.client().put_object(Bucket=s3_server.BUCKET, Key=key, Body=b"not these weights")
    clone = cloned(project, tmp_path / "elsewhere" / "clone", s3)
    clone.dvc("remote", "modify", "--local", "s3", "verify", "true")
    done = clone.smt("dvc", "restore", CHILD)
    assert done.returncode == 2, done.stdout
    assert not run_dir(clone, CHILD).joinpath("model.safetensors").exists()


def test_credentials_stay_out_of_the_repository(project):
    project.dvc("push", f"run@{CHILD}-seed0")
    assert project.git("status", "--porcelain") == ""
    for path in project.folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and "data" not in path.parts:
            assert s3_server.SECRET.encode() not in path.read_bytes(), path


def test_credentials_in_the_file_that_git_keeps_are_refused_in_one_line(project):
    project.dvc("remote", "modify", "local", "url", PLACE)
    project.dvc("remote", "modify", "local", "secret_access_key", s3_server.SECRET)
    done = project.smt("dvc", "record")
    assert done.returncode == 2 and done.stderr.count("\n") == 1
    assert ".dvc/config: remote local: secret_access_key holds credentials" in done.stderr
    assert s3_server.SECRET not in done.stderr
    project.dvc("remote", "modify", "--unset", "local", "secret_access_key")
    assert project.smt("dvc", "record").returncode == 0


def test_without_credentials_a_push_says_so(project, monkeypatch):
    for name in s3_server.environment():
        if "KEY" in name:
            monkeypatch.delenv(name)
    home = project.folder.parent / "home"
    shutil.rmtree(home, ignore_errors=True)
    done = project.dvc("push", check=False, HOME=str(home))
    assert done.returncode != 0 and "credentials" in done.stderr.lower()
