"""The plan of the DAG, without Snakemake."""

import re

import pytest

from smt import dag
from smt.errors import UserError
from smt.runs.paths import Layout
from tests.helpers.params import project_at

TABLE = "imagenet1k"


def plan_with_table(name):
    """Return the plan of a project in which the table of results has another name."""
    project = project_at("demo")
    tables = {name: project.tables[TABLE]}
    return dag.Plan(project.model_copy(update={"tables": tables}), Layout("demo"))


@pytest.mark.parametrize("name", ["claims", "sizes", "index", "all"])
def test_a_table_may_not_have_the_name_of_a_page(name):
    with pytest.raises(UserError, match=rf"^params/tables.yaml: tables.{name}: this name has a"):
        dag.forbid_names(plan_with_table(name), ())


def test_two_tables_may_not_have_one_name():
    message = re.escape("params/peers.yaml: peer_tables.peers_coco: this name has a meaning")
    with pytest.raises(UserError, match=message):
        dag.forbid_names(plan_with_table("peers_coco"), ())


def test_other_names_are_free():
    dag.forbid_names(plan_with_table(TABLE), ())
