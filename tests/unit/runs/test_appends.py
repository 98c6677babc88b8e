"""Every file that is appended to has one writer: NFS loses lines that two hosts append."""

import ast
import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[3]
EXECUTOR = "workflow/plugins/snakemake-executor-plugin-submitit/src"

ONE_WRITER = {
    "smt/runs/journal.py": "rank 0 of the training that holds the run's lock",
    "smt/tasks/log_file.py": "rank 0 of the training that holds the run's lock",
    "smt/cluster/doctor/file_agent.py": "a probe file, for what two writers lose is the question",
    "smt/datasets/hashing.py": "the process that holds the file's own lock",
    "smt/tracking/sender.py": "a log for each host; and a lock, never written",
    f"{EXECUTOR}/snakemake_executor_plugin_submitit/attempts.py": "a file for each host",
    f"{EXECUTOR}/snakemake_executor_plugin_submitit/registry.py": "a lock, replaced by its holder",
    "smt/runs/lock.py": "a lock, replaced by its holder",
    "smt/datasets/packs/write.py": "a lock, replaced by its holder",
    "smt/datasets/demo/digits.py": "a lock, never written",
    "smt/tracking/client.py": "a lock, never written",
    "smt/versioning/dvc.py": "a lock, never written",
}
"""Modules that open files for appending -> why two hosts never append to the same one."""


def opens_for_appending(node):
    """Return whether a node of the syntax tree opens a file for appending."""
    if isinstance(node, ast.Call):
        texts = [each.value for each in (*node.args, *(key.value for key in node.keywords))
                 if isinstance(each, ast.Constant)]  # fmt: skip
        name = getattr(node.func, "attr", getattr(node.func, "id", ""))
        return name in ("open", "fdopen") and any(
            re.fullmatch(r"a[bt+]*", str(text)) for text in texts
        )
    return getattr(node, "attr", "") in ("O_APPEND", "FileHandler", "RotatingFileHandler")


def test_every_file_that_is_appended_to_has_one_writer():
    files = [*(ROOT / "smt").rglob("*.py"), *(ROOT / EXECUTOR).rglob("*.py")]
    appending = {
        str(path.relative_to(ROOT)) for path in files
        if any(map(opens_for_appending, ast.walk(ast.parse(path.read_bytes()))))
    }  # fmt: skip
    assert appending == set(ONE_WRITER)


def test_no_rule_of_the_workflow_appends():
    rules = [ROOT / "Snakefile", *(ROOT / "workflow" / "rules").glob("*.smk")]
    assert [path.name for path in rules if ">>" in path.read_text()] == []
