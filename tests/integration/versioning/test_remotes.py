"""DVC's remotes: a real S3 endpoint, also one whose connections break."""

import shutil
import subprocess

import pytest

from tests.helpers import s3_server
from tests.helpers.finished_project import CHILD, run_dir

pytestmark = [
    pytest.mark.servers,
    pytest.mark.xdist_group("s3"),  # one server for all of them
    pytest.mark.usefixtures("server"),  # skips before the finished project is trained
]

PREFIX = f"s3://{s3_server.BUCKET}/results"


@pytest.fixture(scope="module")
def server(tmp_path_factory):
    s3_server.require_s3()
    server = s3_server.S3Server(tmp_path_factory.mktemp("s3"))
    yield server
    server.stop()


@pytest.fixture
def s3(server, monkeypatch, request):
    """The server and a URL of the test's own; sets the environment of a user of S3."""
    for name, value in s3_server.environment().items():
        monkeypatch.setenv(name, value)
    server.proxy.reset()
    return server, f"{PREFIX}/{request.node.name}"


def with_remote(project, s3):
    """Add the remote to a project as docs/dvc.md says, with --local: nothing in git changes."""
    server, url = s3
    project.dvc("remote", "add", "--local", "--default", "s3", url)
    project.dvc("remote", "modify", "--local", "s3", "endpointurl", server.url)
    return project


@pytest.fixture
def project(finished, tmp_path, s3):
    project = with_remote(finished.copied(tmp_path / "project"), s3)
    yield project
    shutil.rmtree(project.folder)


def cloned(project, folder, s3):
    """Return a clone whose only reachable remote is S3."""
    return with_remote(project.cloned(folder), s3)


def objects(project):
    return {path.name for path in (project.folder / ".dvc/cache/files/md5").rglob("*/*")}


def weights(project):
    return run_dir(project, CHILD).joinpath("model.safetensors").read_bytes()


def test_a_clone_restored_from_s3_has_nothing_to_do(project, tmp_path, s3):
    project.dvc("push")
    assert "in sync" in project.dvc("status", "--cloud").stdout
    clone = cloned(project, tmp_path / "elsewhere" / "clone", s3)
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert weights(clone) == weights(project)
    assert clone.is_left_alone()
    assert clone.dvc("status", "--cloud").stdout == project.dvc("status", "--cloud").stdout


@pytest.mark.slow
def test_an_interrupted_push_is_resumed(project, s3):
    proxy = s3[0].proxy
    proxy.reset("PUT", limit=5)
    failed = project.dvc("push", "--jobs", "1", check=False)
    assert proxy.is_closed and failed.returncode != 0
    proxy.reset("PUT")
    project.dvc("push")
    assert 0 < proxy.count <= len(objects(project)) - 5
    assert "in sync" in project.dvc("status", "--cloud").stdout
    proxy.reset("PUT")
    project.dvc("push")
    assert proxy.count == 0


def test_an_interrupted_pull_is_resumed_and_its_files_are_complete(project, tmp_path, s3):
    project.dvc("push")
    clone = cloned(project, tmp_path / "elsewhere" / "clone", s3)
    proxy = s3[0].proxy
    proxy.reset("GET", limit=12)
    failed = clone.smt("dvc", "restore")
    assert proxy.is_closed and failed.returncode == 2
    assert "nothing is lost: run the same command again" in failed.stderr
    proxy.reset("GET")
    done = clone.smt("dvc", "restore")
    assert done.returncode == 0, done.stderr
    assert weights(clone) == weights(project)
    assert clone.is_left_alone()


def test_a_changed_object_of_the_remote_is_refused(project, tmp_path, s3):
    path = run_dir(project, CHILD) / "model.safetensors"
    project.dvc("push")
    digest = subprocess.run(["md5sum", str(path)], capture_output=True, text=True).stdout[:32]
    server, url = s3
    key = f"{url}/files/md5/{digest[:2]}/{digest[2:]}".removeprefix(f"s3://{s3_server.BUCKET}/")
    server.client().head_object(
        Bucket=s3_server.BUCKET, Key=key
    )  # raises an error if it is not there
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


def test_credentials_in_the_file_that_git_tracks_are_refused_in_one_line(project):
    project.dvc("remote", "modify", "local", "url", PREFIX)
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
