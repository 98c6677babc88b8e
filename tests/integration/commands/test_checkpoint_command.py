"""`smt checkpoint` on real files: tells what they hold, finds damage, runs nothing."""

import os

import torch

from smt.runs.checkpoint_files import checkpoints_in
from tests.helpers.trainings import RUN_OF_DEMO, STEPS, one_line, run_dir, smt, work_dir


def test_a_checkpoint_shows_its_run_and_its_position(trained):
    path = checkpoints_in(work_dir(trained) / "checkpoints")[0]
    output = smt(trained, "checkpoint", str(path)).stdout
    for words in ("whole: its SHA-256", RUN_OF_DEMO, f"step {STEPS}, 2 epochs closed", "optimizer",
                  "float32", "lines"):  # fmt: skip
        assert words in output, output
    fingerprint = path.parent.parent.name.removeprefix("work-")
    assert fingerprint in output


def test_exported_weights_are_compared_with_their_metrics(trained, tmp_path):
    path = run_dir(trained) / "model.safetensors"
    assert "the file that" in smt(trained, "checkpoint", str(path)).stdout
    for name in ("model.safetensors", "metrics.json"):
        (tmp_path / name).write_bytes((run_dir(trained) / name).read_bytes())
    changed = tmp_path / "model.safetensors"
    changed.write_bytes(changed.read_bytes()[:-4] + b"abcd")
    done = smt(trained, "checkpoint", str(changed), check=False)
    assert done.returncode == 3 and "DAMAGED" in done.stdout and "metrics.json" in done.stdout


def test_a_folder_is_a_line_each(trained):
    done = smt(trained, "checkpoint", "results")
    lines = done.stdout.splitlines()
    assert lines[-1] == f"{len(lines) - 1} files, 0 damaged" and len(lines) >= 4
    assert any(f"step {STEPS}, 2 epochs closed" in line for line in lines)


def test_a_file_that_carries_code_is_refused_and_the_code_not_run(trained, tmp_path):
    class Trap:
        def __reduce__(self):
            return os.mkdir, (str(tmp_path / "ran"),)

    torch.save({"model": Trap()}, tmp_path / "trap.pth")
    done = smt(trained, "checkpoint", str(tmp_path / "trap.pth"), check=False)
    assert done.returncode == 2
    one_line(done, "trap.pth", "mkdir")
    assert not (tmp_path / "ran").exists()


def test_a_missing_path_is_one_line(trained, tmp_path):
    for path, words in ((tmp_path / "no", "no such file"), (tmp_path, "no checkpoint or weights")):
        done = smt(trained, "checkpoint", str(path), check=False)
        assert done.returncode == 2
        one_line(done, str(path), words)
