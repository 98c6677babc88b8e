"""`smt data pack`: killed it goes on, and a training from a pack ends as one from folders does."""

import subprocess
from signal import SIGKILL

import pytest

from testbed.waiting import PATIENCE, wait_for
from tests.helpers.trainings import (
    RUN_OF_DEMO,
    edit_demo,
    one_line,
    outcome,
    smt,
    stop_at,
    work_dir,
)
from tests.integration.datasets.test_verify import DataSet

PACK = ("pack", "tiny", "--shard-size", "30KB")


@pytest.fixture
def data(tmp_path):
    return DataSet(tmp_path)


def files(folder):
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in folder.rglob("*")
        if path.is_file()
    }


def test_killed_it_goes_on_keeps_its_shards_and_ends_with_the_same_bytes(data):
    assert data.run("verify", "tiny")[0] == 0
    assert data.run(*PACK, "--to", "whole")[0] == 0
    folder = data.folder / "data" / "tiny-packed"

    def shards():
        return {path: path.stat().st_ino for path in folder.rglob("[0-9]*.tar")}

    process = data.start(*PACK, "--jobs", "2", SLOW="0.05")
    wait_for(lambda: len(shards()) >= 2 or process.poll() is not None, every=0.002)
    process.send_signal(SIGKILL)
    assert process.wait(timeout=PATIENCE) == -SIGKILL
    kept = shards()
    assert not (folder / "pack.json").exists()
    code, output, opened = data.run(*PACK)
    assert code == 0, output
    assert f"{len(kept)} were there: {folder}, 204 images in " in output
    assert kept.items() <= shards().items() and len(opened) < len(data.images)
    assert files(folder) == files(data.folder / "whole")
    code, output, opened = data.run(*PACK)
    assert code == 0 and "is there already" in output and not opened
    tar = ["tar", "-tf", folder / "train" / "000000.tar"]
    names = subprocess.run(tar, check=True, capture_output=True, text=True).stdout.splitlines()
    assert names[:2] == ["c0/000000000.jpg", "c0/000000000.cls"]


def test_a_run_from_a_pack_killed_ends_with_the_bytes_of_one_from_folders(
    small_project, trained, undisturbed
):
    key, folder = "imagenet1k", small_project / "packed"
    done = smt(small_project, "data", "pack", key, "--to", str(folder), "--shard-size", "30KB")
    assert f"to train from it, set datasets.{key}.root in params to {folder}" in done.stdout

    def read_pack(demo):
        demo["datasets"][key]["root"] = str(folder)
        demo["workers"] = 2

    edit_demo(small_project, read_pack)
    assert smt(small_project, "data", "make", key).stdout.startswith(f"{key}: is there already")
    (small_project / "results" / "demo" / "data" / f"{key}.json").unlink()
    said = smt(small_project, "data", "check", key).stdout
    assert said.startswith(f"ok     {key}: 100 train") and "packed; no manifest yet" in said
    for command in ("verify", "check"):
        assert smt(small_project, "data", command, key).stdout.startswith(
            f"ok     {key}: 100 train"
        )
    assert stop_at(small_project, 7, "--checkpoint-minutes", "0.001", number=SIGKILL) == -SIGKILL
    assert "resumes after step" in smt(small_project, "train", RUN_OF_DEMO).stderr
    assert outcome(small_project) == undisturbed
    assert work_dir(small_project).name == work_dir(trained).name, "the same fingerprint"


def test_a_run_on_a_damaged_pack_stops_with_one_line_that_names_shard_and_entry(small_project):
    key, folder = "imagenet1k", small_project / "packed"
    smt(small_project, "data", "pack", key, "--to", str(folder), "--shard-size", "30KB")
    edit_demo(small_project, lambda demo: demo["datasets"][key].update(root=str(folder)))
    shard = folder / "train" / "000000.tar"
    content = bytearray(shard.read_bytes())
    content[1024 - 512 + 100] ^= 1
    shard.write_bytes(content)
    stopped = smt(small_project, "train", RUN_OF_DEMO, check=False)
    assert stopped.returncode == 3
    one_line(stopped, f"{shard}, entry train/n00000000/", "bytes are not those that were packed")
    shard.write_bytes(content[:-2000])
    stopped = smt(small_project, "train", RUN_OF_DEMO, check=False)
    assert stopped.returncode == 3
    one_line(stopped, str(shard), "bytes, now", "smt data pack imagenet1k --to")


def test_bad_sizes_and_names_are_one_line(data):
    for arguments, words in (
        (("pack", "tiny", "--shard-size", "big"), "--shard-size big: valid: a number with KB, MB"),
        (("pack", "tiiny"), "did you mean tiny?"),
        (("pack", "coco"), "coco cannot be packed: only data sets in ImageNet's layout can"),
    ):
        code, output, _ = data.run(*arguments)
        assert code == 2 and words in output and len(output.splitlines()) == 1
