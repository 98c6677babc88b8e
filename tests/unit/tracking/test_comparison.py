"""Which runs `smt ui` shows beside each other."""

from types import SimpleNamespace

import pytest

from smt.errors import UserError
from smt.tracking import comparison
from smt.tracking.client import RemoteRun
from tests.helpers.params import project_at

DEMO = project_at("demo")


def client(*runs):
    """Return what answers as a client of MLflow with these runs, the oldest first."""
    return SimpleNamespace(runs=lambda: list(runs), family="smt-demo")


def remote(run_id, table, *, status="FINISHED", experiment="1", run="imagenet1k_smt_tiny"):
    tags = {f"smt.table.{table}": "true", "smt.experiment": run, "smt.seed": "0"}
    return RemoteRun(run_id, experiment, status, 0, tags=tags)


def test_without_a_name_it_is_the_first_table_that_has_a_run():
    heads, ade20k = remote("a", "ablation_heads"), remote("b", "ade20k", experiment="2")
    chosen = comparison.default(DEMO, client(ade20k, heads))
    assert (chosen.key, chosen.runs) == ("ablation_heads", (heads,))
    assert comparison.default(DEMO, client()) is None


def test_a_run_that_was_started_again_with_other_params_is_not_compared():
    old, new = remote("old", "imagenet1k", status="KILLED"), remote("new", "imagenet1k")
    assert comparison.named(DEMO, client(old, new), ["imagenet1k"]).runs == (new,)
    assert comparison.named(DEMO, client(old, new), ["imagenet1k_smt_tiny-seed0"]).runs == (new,)
    assert comparison.default(DEMO, client(old)) is None


def test_more_runs_than_a_view_of_mlflow_can_name_are_an_error():
    names = [str(run) for run in DEMO.runs]
    every = client(*(remote(f"{run}".ljust(700), "any", run=run.experiment) for run in DEMO.runs))
    named = [name for name in names if name.endswith("seed0")]
    with pytest.raises(UserError, match="runs are more than a view of MLflow can name"):
        comparison.named(DEMO, every, named).publish(every, "http://127.0.0.1:5000")


def test_each_task_has_its_own_metric_before_the_losses():
    runs = [
        remote(name, "any", run=name)
        for name in ("coco_retinanet_smt_small", "ade20k_upernet_smt_base")
    ]
    chosen = comparison.named(DEMO, client(*runs), [f"{run.run_id}-seed0" for run in runs])
    assert chosen.metrics == ("eval/box_ap", "eval/miou", "train/loss")
    alone = comparison.named(DEMO, client(remote("a", "ade20k")), ["ade20k"])
    assert alone.metrics == ("eval/miou", "train/loss")
