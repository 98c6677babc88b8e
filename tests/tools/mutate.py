"""`python -m tests.tools.mutate`: mutation testing.

Each mutation is applied in a copy of this checkout, in an environment of its own whose packages
are those of this one, and the tests of its area are run there until one fails. A test that fails
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
"""Seconds for the tests of one mutation. A timeout counts as a failed test."""

ENDLESS = "timeout"

LEFT_BEHIND = {".git", ".venv", ".snakemake", ".cluster", "data", "results", ".hypothesis",
               ".mypy_cache", ".ruff_cache", ".pytest_cache"}  # fmt: skip
"""Entries of a checkout's root that no test needs."""

OWN_PATH_FILES = ("_smt_reproduction.pth", "_snakemake_executor_plugin_submitit.pth")
"""Files by which an environment imports the code of its checkout."""

CODE_PATHS = ("{0}", "{0}/workflow/plugins", f"{{0}}/{PLUGIN}/src", f"{{0}}/{PLUGIN}/tests")
"""Folders of that code in a copy of the checkout."""

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
"""Other names of test files in a checkout with all tests in one folder."""


class InvalidMutation(Exception):
    """A mutation that cannot be applied, or tests that cannot be run."""


@dataclass(frozen=True)
class Outcome:
    """The result of an area's tests on a mutation."""

    test: str | None
    """The first that fails."""
    seconds: float

    def __str__(self) -> str:
        result = f"killed by {self.test}" if self.test else "SURVIVED"
        return f"{result} [{self.seconds:.0f} s]"


class Checkout:
    """A copy of a checkout, twice: as it is, and for one mutation after the other."""

    def __init__(self, source: Path, folder: Path) -> None:
        self.is_flat = not (source / "tests" / "unit").is_dir()
        self.whole, self.mutated = folder / "whole", folder / "mutated"
        self.broken: set[str] = set()
        """Tests that fail without a mutation."""
        for copy in (self.whole, self.mutated):
            shutil.copytree(source, copy, ignore=ignore_left_behind(source), symlinks=True)
            make_environment(copy)

    def files(self, tests: Iterable[str]) -> list[str]:
        """Return the files of tests as they are called here, those that there are."""
        names = dict.fromkeys(
            FLAT_NAMES.get(file, Path(file).name) if self.is_flat else file for file in tests
        )
        places = (file for name in names for file in (f"tests/{name}", name))
        return [file for file in places if (self.whole / file).exists()]

    def outcome(self, mutation: Mutation) -> Outcome:
        """Return the tests' result on a mutation: first of those that are not slow."""
        started, files = time.monotonic(), self.files(mutation.tests)
        if not files:
            raise InvalidMutation(f"none of {', '.join(mutation.tests)} is there")
        with applied(mutation, self.mutated):
            for marker in ("not slow", "slow"):
                if failed := self._failures(self.mutated, "-x", "-m", marker, *files):
                    return Outcome(failed[0], time.monotonic() - started)
        return Outcome(None, time.monotonic() - started)

    def broken_among(self, outcomes: Iterable[Outcome | None]) -> set[str]:
        """Return the tests that fail without a mutation as well.

        They are deselected from now on.
        """
        failed = {
            outcome.test for outcome in outcomes if outcome is not None and outcome.test is not None
        }
        tests = sorted(failed - {ENDLESS})
        broken_tests = set(self._failures(self.whole, *tests)) if tests else set()
        self.broken |= broken_tests
        return broken_tests

    def _failures(self, copy: Path, *arguments: str) -> list[str]:
        """Run tests in a copy; return those that fail."""
        left_out = (f"--deselect={test}" for test in self.broken)
        environment = {
            name: value for name, value in os.environ.items() if not name.startswith("SMT_")
        }
        path = f"{copy}/.venv/bin{os.pathsep}{os.environ['PATH']}"
        with tempfile.TemporaryFile("w+") as output:
            process = subprocess.Popen(
                [python(copy), "-m", "pytest", "-q", "--tb=no", "-p", "no:randomly", "-p",
                 "no:cacheprovider", *left_out, *arguments],
                cwd=copy, env={**environment, "PATH": path, "OMP_NUM_THREADS": "1"}, stdout=output,
                stderr=subprocess.STDOUT, stdin=subprocess.DEVNULL, start_new_session=True,
            )  # fmt: skip
            try:
                code = process.wait(LIMIT)
            except subprocess.TimeoutExpired:
                end(process)
                return [ENDLESS]
            output.seek(0)
            text = output.read()
        failed = re.findall(r"^(?:FAILED|ERROR) (\S+\.py.*?)(?: - .*)?$", text, re.MULTILINE)
        if not failed and code not in (0, 5):  # 5: there is none to run
            raise InvalidMutation(f"pytest ended with {code}: {text[-2000:]}")
        return failed


def ignore_left_behind(source: Path) -> Callable[[str, list[str]], set[str]]:
    """Return what `shutil.copytree` asks: which names of a folder of `source` are not copied."""

    def ignored(folder: str, names: list[str]) -> set[str]:
        return {"__pycache__", *(LEFT_BEHIND if Path(folder) == source else ())} & {*names}

    return ignored


def make_environment(copy: Path) -> None:
    """Make `.venv` in a copy: every package of this environment, and the code of the copy."""
    prefix, target = Path(sys.prefix), copy / ".venv"
    packages = Path(sysconfig.get_path("purelib"))
    site_packages = target / packages.relative_to(prefix)
    site_packages.mkdir(parents=True)
    for entry in packages.iterdir():
        if entry.name not in OWN_PATH_FILES:
            (site_packages / entry.name).symlink_to(entry)
    (site_packages / OWN_PATH_FILES[0]).write_text(
        "".join(f"{path}\n" for path in CODE_PATHS).format(copy)
    )
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
    result = subprocess.run([python(copy), "-c", command], cwd="/", env={}, capture_output=True,
                          text=True, check=True)  # fmt: skip
    if result.stdout.count(f"{copy}/") != 2:
        raise InvalidMutation(f"not the code of {copy} is imported but {result.stdout}")


def python(copy: Path) -> Path:
    return copy / ".venv" / "bin" / "python"


@contextmanager
def applied(mutation: Mutation, copy: Path) -> Iterator[None]:
    """Apply a mutation while the body runs."""
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
    children = psutil.Process(process.pid).children(recursive=True)
    process.send_signal(signal.SIGINT)
    try:
        process.wait(60)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()
    for child in children:
        if child.is_running():
            child.kill()


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
        "".join(map(ast.dump, (node.args, *node.body)))
        for tree in trees
        for node in ast.walk(tree)
        if isinstance(node, ast.FunctionDef) and node.name == name
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--list", action="store_true", help="print the mutations and do nothing")
    parser.add_argument("--only", nargs="+", metavar="NAME", default=[],
                        help="mutations whose name or area contains one of these")  # fmt: skip
    parser.add_argument("--old", type=Path, metavar="FOLDER", help="another checkout")
    arguments = parser.parse_args()
    chosen = [
        mutation
        for mutation in MUTATIONS
        if not arguments.only
        or any(word in f"{mutation.area}: {mutation.name}" for word in arguments.only)
    ]
    if arguments.list:
        for mutation in chosen:
            print(f"{mutation.area}: {mutation.name} ({mutation.file})")
        return
    with tempfile.TemporaryDirectory(prefix="mutate-") as name:
        now = Checkout(ROOT, Path(name) / "now")
        before = Checkout(arguments.old, Path(name) / "old") if arguments.old else None
        while chosen:
            outcomes = {mutation: report(mutation, now, before) for mutation in chosen}
            broken_tests = now.broken_among(pair[0] for pair in outcomes.values())
            if before is not None:
                broken_tests |= before.broken_among(pair[1] for pair in outcomes.values())
            for test in sorted(broken_tests):
                print(f"{test} fails without a mutation as well; again without it:")
            chosen = [
                mutation
                for mutation, pair in outcomes.items()
                if any(outcome is not None and outcome.test in broken_tests for outcome in pair)
            ]


def report(
    mutation: Mutation, now: Checkout, before: Checkout | None
) -> tuple[Outcome | None, Outcome | None]:
    """Print and return the outcome of a mutation: now and, if it was run, in the old checkout."""
    outcome = old = None
    print(f"{mutation.area}: {mutation.name}: ", end="", flush=True)
    try:
        outcome = now.outcome(mutation)
        print(outcome, end="", flush=True)
        if before is not None:
            if outcome.test and is_same(outcome.test, now.whole / "tests", before.whole / "tests"):
                print("; before: the same test", end="")
            else:
                old = before.outcome(mutation)
                print(f"; before: {old}", end="")
    except InvalidMutation as error:
        print(f"; error: {error}", end="")
    print(flush=True)
    return outcome, old


if __name__ == "__main__":
    main()
