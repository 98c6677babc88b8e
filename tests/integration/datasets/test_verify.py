"""`smt data verify`: every byte is read once, killed or not, and whatever differs is named."""

import contextlib
import hashlib
import json
import os
import pty
import shutil
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from signal import SIGINT, SIGKILL, SIGTERM

import pytest

from smt.datasets.hashing import HashCache
from smt.datasets.scan import FileEntry
from smt.errors import UserError
from smt.runs import lock
from testbed.waiting import PATIENCE, wait_for
from tests.helpers import ROOT, forkserver
from tests.helpers.imagefolders import write_images

CLASSES, TRAIN, VAL = 6, 30, 4
LISTS = {"tiny.train.txt", "tiny.val.txt"}

# What the command under test opens for reading is told by Python itself, not by the command.
COUNTING = """
import os, sys, time
SECONDS, FROM, OPENED = float(os.environ.get("SLOW", 0)), int(os.environ.get("FROM", 0)), []
def hook(event, arguments):
    if event == "open" and str(arguments[0]).endswith(".JPEG"):
        OPENED.append(arguments[0])
        if len(OPENED) > FROM:
            time.sleep(SECONDS)  # as a slow disk would
        with os.fdopen(os.open(LOG, os.O_WRONLY | os.O_APPEND | os.O_CREAT), "w") as log:
            log.write(f"{arguments[0]}\\n")
sys.addaudithook(hook)
"""


class DataSet:
    """A data set that the user brought, its params, and the command as a user starts it."""

    def __init__(self, folder):
        self.folder, self.root = folder, folder / "data" / "tiny"
        write_images(self.root / "train", classes=CLASSES, per_class=TRAIN)
        write_images(self.root / "val", classes=CLASSES, per_class=VAL, seed=1)
        shutil.copytree(ROOT / "params", folder / "params")
        self.say(CLASSES * TRAIN)
        (folder / "counting").mkdir()
        self.log = folder / "opened.txt"
        counting = COUNTING.replace("LOG", repr(str(self.log)))
        (folder / "counting" / "sitecustomize.py").write_text(counting)

    def say(self, train_images):
        """Let params expect so many images for training."""
        path = self.folder / "params" / "data.yaml"
        entry = (
            f"  tiny:\n    title: tiny\n    root: tiny\n    classes: {CLASSES}\n"
            f"    train_images: {train_images}\n    val_images: {CLASSES * VAL}\n"
            "    source: the maker of tiny\n    generator: null\n"
        )
        text = (ROOT / "params" / "data.yaml").read_text()
        path.write_text(text.replace("datasets:\n", f"datasets:\n{entry}"))

    def start(self, *arguments, prefix=(), stderr=None, **more):
        """Start it, after `prefix` as a process of its own; it prints to a file, see `said`."""
        command = ("smt", "data", *arguments, "--scale", "paper")
        paths = {name.upper(): str(self.folder / name) for name in ("params", "data", "results")}
        environment = {
            **os.environ,
            **{f"SMT_{name}": path for name, path in paths.items()},
            "PYTHONPATH": f"{self.folder / 'counting'}{os.pathsep}{ROOT}",
            **more,
        }
        with (self.folder / "said.txt").open("wb") as said:
            how = {"cwd": self.folder, "env": environment, "stdout": said}
            how["stderr"] = stderr or said
            if prefix:
                return subprocess.Popen([*prefix, sys.executable, "-m", *command], **how)
            return forkserver.start(*command, **how)

    def said(self):
        return (self.folder / "said.txt").read_text()

    def run(self, *arguments, **how):
        """Return exit code and output of a command, and which images it opened."""
        self.log.unlink(missing_ok=True)
        code = self.start(*arguments, **how).wait(timeout=PATIENCE)
        return code, self.said(), self.opened()

    def verify(self, *arguments, **how):
        return self.run("verify", "tiny", *arguments, **how)

    def opened(self):
        return self.log.read_text().splitlines() if self.log.exists() else []

    def written(self, name):
        return self.folder / "results" / "paper" / "data" / name

    def digest(self):
        return json.loads(self.written("tiny.json").read_text())["digest"]

    @property
    def images(self):
        return sorted(self.root.rglob("*.JPEG"))


@pytest.fixture(scope="module")
def verified(tmp_path_factory):
    """A data set that was verified once."""
    data = DataSet(tmp_path_factory.mktemp("verified"))
    code, output, opened = data.verify()
    assert code == 0, output
    assert sorted(opened) == [str(path) for path in data.images]
    return data


@pytest.fixture
def data(verified, tmp_path):
    """A copy of it, to damage."""
    shutil.copytree(verified.folder, tmp_path / "copy")
    copy = DataSet.__new__(DataSet)
    copy.folder, copy.root = tmp_path / "copy", tmp_path / "copy" / "data" / "tiny"
    copy.log = verified.log  # where the hook writes to
    return copy


def test_the_first_time_every_file_is_written_down_with_its_digest(verified):
    lists = [verified.written(f"tiny.{split}.txt").read_text() for split in ("train", "val")]
    assert "".join(lists) == "".join(
        f"{path.relative_to(verified.root)}\t{path.stat().st_size}\t"
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}\n"
        for path in verified.images
    )
    assert verified.digest() == hashlib.sha256("".join(lists).encode()).hexdigest()
    names = {path.name for path in verified.written("").iterdir()}
    assert names == LISTS | {"tiny.json"}


def test_what_is_as_it_was_is_whole_and_every_byte_was_read(data):
    code, output, opened = data.verify()
    assert code == 0 and len(opened) == len(set(opened)) == len(data.images)
    assert output.startswith("ok     tiny: 180 train and 24 val images in 6 classes")
    assert "every byte as its manifest says; 204 files read\n" in output


def test_a_changed_byte_of_equal_size_and_time_is_named(data):
    path = data.root / "train" / "c3" / "007.JPEG"
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    before = data.digest()
    code, output, _ = data.verify()
    assert code == 3
    assert "wrong  tiny: 1 file (1 changed) not as in " in output
    assert "changed     train/c3/007.JPEG  (other bytes, as many)" in output
    assert "smt data manifest tiny --scale paper" in output and "Traceback" not in output
    assert data.written("tiny.differences.txt").read_text().startswith("changed\ttrain/c3/007.JPEG")
    # Nothing was taken for true by itself; on request it is, and it is another data set then.
    assert data.digest() == before
    assert data.run("manifest", "tiny")[0] == 0
    assert data.digest() != before and not data.written("tiny.differences.txt").exists()
    assert data.verify()[0] == 0


def test_missing_new_and_longer_files_are_named_also_without_reading(data):
    (data.root / "train" / "c0" / "000.JPEG").unlink()
    shutil.rmtree(data.root / "val" / "c5")
    (data.root / "val" / "c50").mkdir()
    shutil.copy(data.images[0], data.root / "val" / "c50" / "extra.jpg")
    with (data.root / "train" / "c5" / "029.JPEG").open("ab") as file:
        file.write(b"\0")
    for command in ("verify", "check"):
        code, output, opened = data.run(command, "tiny")
        assert code == 3 and "7 files (5 missing, 1 changed, 1 new) not as in" in output
        for line in ("missing     train/c0/000.JPEG", "missing     val/c5/003.JPEG",
                     "new         val/c50/extra.jpg", "changed     train/c5/029.JPEG"):  # fmt: skip
            assert line in output
        assert "train has 179 images, published are 180 (the maker of tiny)" in output
        assert len(data.written("tiny.differences.txt").read_text().splitlines()) == 7
        assert bool(opened) == (command == "verify")


def test_of_many_differences_ten_are_named_and_all_are_in_the_file(data):
    shutil.rmtree(data.root / "train" / "c1")
    code, output, _ = data.verify()
    assert code == 3 and output.count("missing     ") == 10
    file = data.written("tiny.differences.txt").relative_to(data.folder)
    assert f"and 20 more, all in {data.folder / file}" in output
    assert len(data.written("tiny.differences.txt").read_text().splitlines()) == 30
    assert "train has 5 class folders, published are 6" in output


def test_a_file_that_cannot_be_read_is_named_and_the_others_are_read(data):
    path = data.root / "train" / "c2" / "011.JPEG"
    path.chmod(0)
    code, output, opened = data.verify(prefix=unprivileged())
    assert code == 3 and len(opened) == len(data.images)
    assert "1 file (1 unreadable)" in output
    assert "unreadable  train/c2/011.JPEG  (cannot be read (Permission denied))" in output
    path.chmod(0o644)
    code, output, opened = data.verify(prefix=unprivileged())
    assert code == 0 and opened == [str(path)], "only what was mended is read again"
    assert "1 files read, 203 by a reading before" in output


def unprivileged():
    """Return what starts a command that permissions hold for, root's own as well."""
    if os.geteuid() != 0:
        return ()
    if shutil.which("setpriv") is None:
        pytest.skip("root without setpriv can read everything")
    return ("setpriv", "--bounding-set", "-dac_override,-dac_read_search")


def test_an_unreadable_file_leaves_no_manifest_behind(tmp_path):
    data = DataSet(tmp_path)
    path = data.root / "train" / "c2" / "011.JPEG"
    path.chmod(0)
    for command in ("verify", "manifest"):
        code, output, _ = data.run(command, "tiny", prefix=unprivileged())
        assert code == 3 and f"{path} cannot be read (Permission denied) (1 such file" in output
        assert not data.written("tiny.json").exists()


def test_counts_that_are_not_the_published_ones_are_told_with_their_source(data):
    data.say(181)
    code, output, _ = data.verify()
    assert code == 3 and "tiny: not of the published size" in output
    assert "train has 180 images, published are 181 (the maker of tiny)" in output
    data.written("tiny.json").unlink()
    code, output, opened = data.verify()
    assert code == 3 and not opened, "a data set that is not whole is refused before it is read"
    assert "train has 180 of 181 images" in output and "(the maker of tiny)" in output
    assert not data.written("tiny.json").exists()


def test_a_list_that_was_changed_is_refused(data):
    path = data.written("tiny.val.txt")
    path.write_text(path.read_text().replace("000.JPEG", "001.JPEG", 1))
    code, output, _ = data.verify()
    assert code == 3 and f"list of images {path} is not the one" in output
    path.unlink()
    assert f"list of images {path} is missing" in data.verify()[1]


def test_a_truncated_image_is_named_where_images_are_decoded(tmp_path):
    data = DataSet(tmp_path)
    path = data.root / "train" / "c1" / "002.JPEG"
    path.write_bytes(path.read_bytes()[:300])
    assert data.verify()[0] == 0  # what is there is what is written down
    code, output, _ = data.verify("--decode")
    assert code == 3 and "1 file (1 undecodable); training stops at one, or" in output
    assert "undecodable train/c1/002.JPEG  (cannot be decoded (" in output
    data.written("tiny.json").unlink()
    code, output, _ = data.verify("--decode")
    assert code == 3 and "1 file (1 undecodable)" in output
    assert data.written("tiny.json").exists(), "a recipe may skip such images"


def test_images_of_validation_are_decoded_in_any_case(tmp_path):
    """An evaluation needs every one: one that is damaged is found before a training, not after."""
    data = DataSet(tmp_path)
    path = data.root / "val" / "c1" / "002.JPEG"
    whole = path.read_bytes()
    path.write_bytes(whole[:300])
    code, output, _ = data.verify()
    assert code == 3 and f"{path} cannot be decoded (" in output
    assert not data.written("tiny.json").exists()
    path.write_bytes(whole)
    assert data.verify()[0] == 0
    path.write_bytes(whole[:300])
    code, output, _ = data.verify()
    assert code == 3 and "val/c1/002.JPEG" in output


@pytest.mark.parametrize(
    "signals",
    [(SIGKILL,), (SIGTERM,), (SIGINT,), (SIGKILL, SIGTERM, SIGINT)],
    ids=lambda signals: " ".join(each.name for each in signals),
)
def test_a_killed_reading_goes_on_and_reads_only_the_rest(data, verified, signals):
    data.written("tiny.json").unlink()
    for name in LISTS:
        data.written(name).unlink()
    reading = data.written("tiny.reading.txt")
    for number in signals:
        kept = count_lines(reading)
        kill_after(data, reading, more=16, number=number)
        assert count_lines(reading) > kept and not data.written("tiny.json").exists()
    kept = [line.split("\t")[0] for line in whole_lines(reading)]
    assert 16 <= len(kept) < len(data.images)
    code, output, opened = data.verify()
    assert code == 0, output
    rest = {str(path) for path in data.images} - {str(data.root / path) for path in kept}
    assert len(opened) == len(rest) and set(opened) == rest
    assert f"{len(rest)} files read, {len(kept)} by a reading before" in output
    assert data.digest() == verified.digest()
    assert {path.name for path in reading.parent.iterdir()} == LISTS | {"tiny.json"}


def kill_after(data, reading, more, number):
    """Start a verification of a disk that becomes slow, and end it once so many were read."""
    goal = count_lines(reading) + more
    process = data.start("verify", "tiny", "--jobs", "1", SLOW="0.2", FROM=str(2 * more))
    wait_for(lambda: count_lines(reading) >= goal or process.poll() is not None, every=0.002)
    process.send_signal(number)
    assert process.wait(timeout=PATIENCE) not in (0, 3), data.said()
    assert "Traceback" not in data.said()


def test_a_reading_says_so_where_it_cannot_be_interrupted(data):
    """As in what a script starts in the background: its shell lets it ignore SIGINT."""
    code, output, _ = data.verify(prefix=("sh", "-c", "trap '' INT; exec \"$@\"", "sh"))
    warning, verdict, *_ = output.splitlines()
    assert code == 0
    assert warning.startswith("smt: Ctrl-C (SIGINT) is ignored") and "kill " in warning
    assert verdict.startswith("ok     tiny: ")


def whole_lines(path):
    text = path.read_text() if path.exists() else ""
    return text[: text.rfind("\n") + 1].splitlines()


def count_lines(path):
    return len(whole_lines(path))


def test_what_changed_between_the_kill_and_the_next_start_is_read_again(tmp_path):
    data = DataSet(tmp_path)
    reading = data.written("tiny.reading.txt")
    kill_after(data, reading, more=40, number=SIGKILL)
    path = data.root / whole_lines(reading)[3].split("\t")[0]
    stat, content = path.stat(), bytearray(path.read_bytes())
    content[100] ^= 1
    path.write_bytes(content)
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    code, _, opened = data.verify()
    assert code == 0 and str(path) in opened
    digest = hashlib.sha256(content).hexdigest()
    assert digest in data.written("tiny.train.txt").read_text()


def test_two_at_once_are_refused(tmp_path):
    data = DataSet(tmp_path)
    reading = data.written("tiny.reading.txt")
    first = data.start("verify", "tiny", "--jobs", "1", SLOW="1", FROM="40")
    wait_for(lambda: count_lines(reading) or first.poll() is not None)
    code, output, _ = data.verify()
    assert first.poll() is None
    first.terminate()
    first.wait(timeout=PATIENCE)
    assert code == 2 and f"{reading}: another process reads this data set" in output


def test_results_that_cannot_be_written_are_one_line(tmp_path, read_only_folder):
    data = DataSet(tmp_path)
    code, output, _ = data.verify(SMT_RESULTS=str(read_only_folder))
    assert code == 2 and output.count("\n") == 1 and "smt --results DIR" in output


def test_without_a_terminal_a_line_comes_now_and_then(tmp_path, monkeypatch):
    from smt.datasets import progress

    said = []
    monkeypatch.setattr(progress.click, "echo", lambda text, err: said.append(text))
    monkeypatch.setattr(progress, "EVERY", 0.0)
    with progress.ProgressBar("tiny") as bar:
        bar.expect(3)
        bar(1, 5_000_000)
    assert len(said) == 1 and said[0].startswith("tiny: 1 of 3 files, 0.0 GB, ")


def test_what_stands_out_of_order_or_broken_is_read_again(tmp_path):
    """Files that came between two kills stand at the end; the rest is known all the same."""
    path, file = tmp_path / "reading.txt", FileEntry("1.JPEG", 10, (3, 4))
    lines = [f"a/{n}.JPEG\t10\t3\t4\td{n}\n" for n in (1, 2, 5, 3, 6)]
    path.write_text("".join(lines) + "\0\0\nb/1.JPEG\t10\t3\t4\tdb\nb/2.JPEG\t10")
    with HashCache(path) as kept:
        asked = [kept.digest("a", file._replace(name=f"{n}.JPEG")) for n in range(7)]
        assert asked == [None, "d1", "d2", None, None, "d5", "d6"]
        assert kept.digest("b", file) == "db"
        assert kept.digest("b", file._replace(name="2.JPEG")) is None
        with pytest.raises(UserError, match="another process reads this data set"):
            HashCache(path)
    assert path.read_text().endswith("db\n"), "half a line is dropped"
    with HashCache(path) as kept:
        assert kept.digest("a", file._replace(size=11)) is None
        assert kept.digest("a", file._replace(name="2.JPEG", times=(3, 5))) is None


def test_in_a_job_a_reading_waits_for_another(tmp_path, monkeypatch, caplog):
    """As that of an attempt on a host that SLURM has lost."""
    monkeypatch.setenv("SLURM_JOB_ID", "7")
    monkeypatch.setattr(lock, "POLL_INTERVAL", 0.01)
    path = tmp_path / "reading.txt"
    with ThreadPoolExecutor() as pool:
        with HashCache(path):
            waiting = pool.submit(HashCache, path)
            wait_for(lambda: f"{path}: waits for another process" in caplog.text)
            assert not waiting.done()
        with waiting.result():
            pass


def test_a_terminal_gets_a_bar(data):
    ours, theirs = pty.openpty()
    with os.fdopen(theirs, "wb") as terminal:
        process = data.start(
            "verify", "tiny", "--jobs", "1", stderr=terminal, SLOW="0.005", TERM="xterm"
        )
    shown = b""
    with contextlib.suppress(OSError):  # so a terminal ends
        while part := os.read(ours, 4096):
            shown += part
    os.close(ours)
    assert process.wait(timeout=PATIENCE) == 0
    assert b"/204" in shown and b"MB/s" in shown


def test_without_keys_class_maps_are_written_down_too_and_the_rest_is_named(data):
    rows = "".join(f"{row}\n" for row in range(1000))
    (data.folder / "data" / "map22kto1k.txt").write_text(rows)
    code, output, _ = data.run("verify")
    lines = output.splitlines()
    assert code == 3
    assert [line[:6] for line in lines] == ["ok    ", *["wrong "] * 4, "ok    "]
    assert "imagenet1k: no folder" in lines[1] and "ade20k: no folder" in lines[4]
    assert "1000 rows" in lines[5]
    assert data.written("class_map_imagenet22k_to_1k.json").exists()


def test_the_benchmark_of_reading_runs(tmp_path):
    """It prints a line for each way and for each of two trees of other sizes; no time is held."""
    done = forkserver.run(
        str(ROOT / "benchmarks" / "verify.py"), "--folders", "2", "--per-folder", "3",
        "--rounds", "1", cwd=tmp_path, env=dict(os.environ),
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    lines = done.stdout.splitlines()
    assert [line.split(":")[0] for line in lines[-2:]] == ["24 files", "240 files"]
    assert sum("files/s" in line for line in lines) == 4
