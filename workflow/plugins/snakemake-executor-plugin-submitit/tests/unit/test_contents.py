"""Digests of what outputs are made from: the same in every process."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from snakemake_executor_plugin_submitit.contents import canonical

PROGRAM = """
import pathlib
from snakemake_executor_plugin_submitit.contents import canonical
class Model:
    pass
print(canonical([{"b", "a", "c"}, {"x": Model(), "y": frozenset("pqr")}, (1, 2.5, None, b"z")]))
"""


def test_parameters_have_the_same_form_in_every_process():
    """Sets have another order there, and objects another address."""
    results = {
        subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, check=True,
                       env={**os.environ, "PYTHONHASHSEED": str(seed)}).stdout
        for seed in range(4)
    }  # fmt: skip
    assert len(results) == 1


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (1, "1"), (1, True), (1, 1.0), (None, "None"), ("a", b"a"), ([1, 2], (1, 2)),
        ([1, 2], [2, 1]), ({1, 2}, {1, 3}), ({"a": 1}, {"a": 2}), ({"a": [1]}, {"a": [2]}),
        (Path("a"), "a"), (range(3), range(4)), ([], {}), ([[1], 2], [1, [2]]),
    ],
)  # fmt: skip
def test_different_parameters_have_different_forms(one, other):
    assert canonical(one) != canonical(other)


def test_the_order_of_a_dictionary_does_not_count():
    assert canonical({"a": 1, "b": {2}}) == canonical({"b": {2}, "a": 1})


def test_pandas_objects_are_compared_by_content():
    pandas = pytest.importorskip("pandas")
    assert canonical(pandas.Series([1, 2])) == canonical(pandas.Series([1, 2]))
    assert canonical(pandas.Series([1, 2])) != canonical(pandas.Series([1, 3]))
