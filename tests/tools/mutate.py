"""`python -m tests.tools.mutate`: what tests find of mistakes that are made on purpose.

Each mutation is made in a copy of this checkout, in an environment of its own whose packages are
those of this one, and the tests of its area are run there until one fails. A test that fails
without the mutation as well is left out. With `--old`, the same is done with the tests of another
checkout, whose files of tests lie flat in `tests/`; a test that is the same in both is not run
again.
"""

import argparse
import ast
import os
import re
import shutil
import signal
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil

from tests.helpers import ROOT
from tests.tools.mutations import MUTATIONS, PLUGIN, Mutation

LIMIT = 1500.0
"""Seconds for the tests of one mutation. A test that hangs has found it."""

ENDLESS = "a test that does not end"

LEFT_BEHIND = {".git", ".venv", ".snakemake", ".cluster", "data", "results", ".hypothesis",
               ".mypy_cache", ".ruff_cache", ".pytest_cache"}  # fmt: skip
"""What no test needs of the root of a checkout."""

OWN = ("_smt_reproduction.pth", "_snakemake_executor_plugin_submitit.pth")
"""Where an environment has the code of the checkout that it was made in."""

OWN_CODE = ("{0}", "{0}/workflow/plugins", f"{{0}}/{PLUGIN}/src", f"{{0}}/{PLUGIN}/tests")
"""Where that code lies in a copy of the checkout."""

FLAT_NAMES = {
    "unit/datasets/test_ade20k.py": "test_ade20k_data.py",
    "unit/datasets/test_coco.py": "test_coco_data.py",
    "unit/detection/test_losses.py": "test_detection_losses.py",
    "unit/evaluation/test_predictions.py": "test_detection_results.py",
    "unit/engine/test_parts.py": "test_engine_parts.py",
    "unit/segmentation/test_inference.py": "test_segmentation_inference.py",
    "unit/evaluation/test_semantic.py": "test_segmentation_metrics.py",
    "integration/datasets/test_verify.py": "test_data_verify.py",
    "cluster/tasks/test_training.py": "test_cluster_training.py",
    "cluster/proof/test_proof.py": "test_proof_cluster.py",
}
"""What files are called where all tests lie in one folder, if not the same."""


class InvalidMutation(Exception):
    """A mutation that cannot be made, or tests that cannot be run; the message says why."""


@dataclass(frozen=True)
class Outcome:
    """What the tests of an area make of a mutation."""

    test: str | None
    """The first that fails."""
    seconds: float

    def __str__(self) -> str:
        said = f"found by {self.test}" if self.test else "NOT FOUND"
        return f"{said} [{self.seconds:.0f} s]"


class Checkout:
    """A copy of a checkout, twice: as it is, and for one mutation after the other."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.is_flat = not (source / "tests" / "unit").is_dir()
        self.whole, self.mutated = folder / "whole", folder / "mutated"
        self.broken: set[str] = set()
        """Tests that fail without a mutation."""
        for copy in (self.whole, self.mutated):
            shutil.copytree(source, copy, ignore=left_behind(source), symlinks=True)
            make_environment(copy)

    def files(self, tests: Iterable[str]) -> list[str]:
        """Return the files of tests as they are called here, those that there are."""
        named = dict.fromkeys(
            FLAT_NAMES.get(each, Path(each).name) if self.is_flat else each for each in tests
        )
        places = (each for name in named for each in (f"tests/{name}", name))
        return [each for each in places if (self.whole / each).exists()]

    def outcome(self, mutation: Mutation) -> Outcome:
        """Return what the tests make of a mutation: at first those that are not slow."""
        started, files = time.monotonic(), self.files(mutation.tests)
        if not files:
            raise InvalidMutation(f"none of {', '.join(mutation.tests)} is there")
        with made(mutation, self.mutated):
            for which in ("not slow", "slow"):
                if failed := self._failures(self.mutated, "-x", "-m", which, *files):
                    return Outcome(failed[0], time.monotonic() - started)
        return Outcome(None, time.monotonic() - started)

    def broken_among(self, outcomes: Iterable[Outcome | None]) -> set[str]:
        """Return which tests that found something fail without any mutation as well.

        They are left out from now on.
        """
        found = {each.test for each in outcomes if each is not None and each.test is not None}
        tests = sorted(found - {ENDLESS})
        broken = set(self._failures(self.whole, *tests)) if tests else set()
        self.broken |= broken
        return broken

    def _failures(self, copy: Path, *arguments: str) -> list[str]:
        """Run tests in a copy; return those that fail."""
        left_out = (f"--deselect={test}" for test in self.broken)
        kept = {name: value for name, value in os.environ.items() if not name.startswith("SMT_")}
        path = f"{copy}/.venv/bin{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [python(copy), "-m", "pytest", "-q", "--tb=no", "-p", "no:randomly", "-p",
                 "no:cacheprovider", *left_out, *arguments],
                cwd=copy, env={**kept, "PATH": path, "OMP_NUM_THREADS": "1"}, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                end(process)
                return [ENDLESS]
            output.seek(0)
            said = output.read()
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$", said, re.MULTILINE)
        if not failed and code not in (0, 5):  # 5: there is none to run
            raise InvalidMutation(f"pytest ended with {code}: {said[-2000:]}")
        return failed


def left_behind(source: Path) -> Callable[[str, list[str]], set[str]]:
    """Return what `shutil.copytree` asks: which names of a folder of `source` are not copied."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {"__pycache__", *(LEFT_BEHIND if Path(folder) == source else ())} & {*names}

    return ignored


def make_environment(copy: Path) -> None:
    """Make `.venv` in a copy: every package of this environment, and the code of the copy."""
    prefix, target = Path(sys.prefix), copy / ".venv"
    packages = Path(sysconfig.get_path("purelib"))
    own = target / packages.relative_to(prefix)
    own.mkdir(parents=True)
    for entry in packages.iterdir():
        if entry.name not in OWN:
            (own / entry.name).symlink_to(entry)
    (own / OWN[0]).write_text("".join(f"{each}\n" for each in OWN_CODE).format(copy))
    shutil.copy(prefix / "pyvenv.cfg", target)
    (target / "bin").mkdir()
    for program in (prefix / "bin").glob("[!_]*"):
        place = target / "bin" / program.name
        if program.is_symlink():
            place.symlink_to(program.readlink())
        else:
            content = program.read_bytes()
            place.write_bytes(content.replace(f"#!{prefix}/".encode(), f"#!{target}/".encode(), 1))
            place.chmod(0o755)
    command = (
        "import smt, snakemake_executor_plugin_submitit as it; print(smt.__file__, it.__file__)"
    )
    done = subprocess.run([python(copy), "-c", command], cwd="/", env={}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    if done.stdout.count(f"{copy}/") != 2:
        raise InvalidMutation(f"not the code of {copy} is imported but {done.stdout}")


def python(copy: Path) -> Path:
    return copy / ".venv" / "bin" / "python"


@contextmanager
def made(mutation: Mutation, copy: Path) -> Iterator[None]:
    """Make a mutation for as long as the body runs."""
    path = copy / mutation.file
    text = path.read_text(encoding="utf-8")
    if text.count(mutation.old) != 1:
        times = text.count(mutation.old)
        raise InvalidMutation(f"{mutation.old.strip()!r} stands {times} times in {mutation.file}")
    path.write_text(text.replace(mutation.old, mutation.new), encoding="utf-8")
    try:
        yield
    finally:
        path.write_text(text, encoding="utf-8")


def end(process: "subprocess.Popen[bytes]") -> None:
    """End a run of pytest and all that it has started, first by asking."""
    started = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for each in started:
        if each.is_running():
            each.kill()


def is_same(test: str, one: Path, other: Path) -> bool:
    """Return whether two folders of tests hold the same function of a test's name."""
    name = test.rpartition("::")[2].partition("[")[0]
    return bool(name) and not functions(name, one).isdisjoint(functions(name, other))


def functions(name: str, folder: Path) -> set[str]:
    """Return arguments and body of each function of a name, without comments and layout."""
    trees = [
        ast.parse(path.read_text(encoding="utf-8"))
        for path in folder.rglob("test_*.py")
        if f"def {name}(" in path.read_text(encoding="utf-8")
    ]
    return {
        "".join(map(ast.dump, (each.args, *each.body)))
        for tree in trees
        for each in ast.walk(tree)
        if isinstance(each, ast.FunctionDef) and each.name == name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and do nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[],
                        help="mutations whose name or area contains one of these")  # fmt: skip
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="another checkout")
    given = parser.parse_args()
    chosen = [
        each
        for each in MUTATIONS
        if not given.only or any(word in f"{each.area}: {each.name}" for word in given.only)
    ]
    if given.list:
        for each in chosen:
            print(f"{each.area}: {each.name} ({each.file})")
        return
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        now = Checkout(ROOT, Path(name) / "now")
        before = Checkout(given.old, Path(name) / "old") if given.old else None
        while chosen:
            outcomes = {each: report(each, now, before) for each in chosen}
            broken = now.broken_among(pair[0] for pair in outcomes.values())
            if before is not None:
                broken |= before.broken_among(pair[1] for pair in outcomes.values())
            for test in sorted(broken):
                print(f"{test} fails without a mutation as well; again without it:")
            chosen = [
                each
                for each, pair in outcomes.items()
                if any(outcome is not None and outcome.test in broken for outcome in pair)
            ]


def report(
    mutation: Mutation, now: Checkout, before: Checkout | None
) -> tuple[Outcome | None, Outcome | None]:
    """Print what is made of a mutation, and return it: now and, if it was run, before."""
    found = old = None
    print(f"{mutation.area}: {mutation.name}: ", end="", flush=True)
    try:
        found = now.outcome(mutation)
        print(found, end="", flush=True)
        if before is not None:
            if found.test and is_same(found.test, now.whole / "tests", before.whole / "tests"):
                print("; before: the same test", end="")
            else:
                old = before.outcome(mutation)
                print(f"; before: {old}", end="")
    except InvalidMutation as error:
        print(f"; error: {error}", end="")
    print(flush=True)
    return found, old


if __name__ == "__main__":
    main()
