"""`smt ui` serves MLflow's UI on the runs of this project, and a sync through it."""

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import urllib.error
import urllib.request
from dataclasses import dataclass
from pathlib import Path

import pytest

from smt.config.experiments import Run
from smt.report.build import build
from smt.report.collect import collect
from smt.tracking.sync import sync
from testbed.waiting import PATIENCE, wait_for_answer
from tests.helpers.browser import browser
from tests.helpers.run_files import CREATED, RunFiles, T, expected_rows, remote, rows

pytestmark = pytest.mark.xdist_group("ui")  # one server for all of them

TINY, SECOND = (Run(experiment=T, seed=seed) for seed in (0, 1))
NAMES = [f"smt_tiny/imagenet1k/seed{seed}" for seed in (0, 1)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def get(url, data=None):
    headers = {"Content-Type": "application/json"}
    request = urllib.request.Request(url, data and json.dumps(data).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE) as answer:
        return answer.read().decode()


@dataclass
class Ui:
    """A running `smt ui`, and the files of the runs in it."""

    files: RunFiles
    url: str
    log: Path


@pytest.fixture(scope="module")
def ui(tmp_path_factory, empty_database):
    """`smt ui` with two runs of one experiment, which were sent through it."""
    folder = tmp_path_factory.mktemp("ui")
    files = RunFiles(folder, seeds=(0, 1))
    shutil.copy(empty_database, files.layout.results / "mlflow.db")
    port = free_port()
    url = f"http://127.0.0.1:{port}"
    with pytest.MonkeyPatch.context() as environment, (folder / "ui.log").open("w") as log:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        process = subprocess.Popen(
            files.command("ui", "--port", str(port)), stdout=log, stderr=log, cwd=folder
        )
        try:
            wait_for_answer(f"{url}/health", process, folder / "ui.log")
            assert get(f"{url}/health") == "OK"
            environment.setenv("MLFLOW_TRACKING_URI", url)
            files.finish(TINY, 96.0, epochs=4)
            files.finish(SECOND, 92.0, epochs=4)
            sync(files.project, files.layout)
            environment.undo()
            yield Ui(files, url, folder / "ui.log")
        finally:
            process.send_signal(signal.SIGTERM)
            process.wait(timeout=PATIENCE)
    with pytest.raises(urllib.error.URLError):
        get(f"{url}/health")  # nothing is left behind


@pytest.mark.servers
def test_the_ui_shows_this_projects_runs_and_takes_a_sync(ui, monkeypatch):
    files = ui.files
    assert "<title>MLflow</title>" in get(ui.url)
    pages = f"{ui.url}/#/experiments?workflowType=machine_learning"
    assert f"MLflow UI, until Ctrl-C: {pages}\n" in ui.log.read_text()
    assert not (files.folder / "mlruns").exists() and not (files.folder / "mlflow.db").exists()
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ui.url)
    assert sync(files.project, files.layout).updated_runs == 0
    request = {"experiment_ids": ["1"], "max_results": 10}
    runs = json.loads(get(f"{ui.url}/api/2.0/mlflow/runs/search", request))["runs"]
    run_ids = {run["info"]["run_name"]: run["info"]["run_id"] for run in runs}
    assert sorted(run_ids) == NAMES
    tiny, second = collect(files.project, files.layout).of(T)
    assert (tiny.metrics["top1"], second.metrics["top1"]) == (96.0, 92.0)
    page, training = f"{ui.url}/#/experiments/1/runs", "?workflowType=machine_learning"
    assert tiny.url == f"{page}/{run_ids[NAMES[0]]}{training}"
    link = f"{page}{training}&compareRunsMode=CHART&viewStateShareKey=imagenet1k"
    done = files.smt("ui", env={**os.environ, "MLFLOW_TRACKING_URI": ui.url})
    assert done.stdout == f"MLflow runs already; open {link}\n"
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    prefixes = ("final/", "evaluation/")
    journal = expected_rows(files.lines(TINY, 4), CREATED)
    assert [row for row in journal if "/top" not in row[1]] == [
        row
        for row in rows(files, remote(files, TINY).run_id)
        if "/top" not in row[1] and not row[1].startswith(prefixes)
    ]


@pytest.mark.servers
@pytest.mark.browser
def test_a_browser_compares_two_runs_and_plots_both_curves(ui, monkeypatch):
    """From a cell of a table with two seeds, and from the link that `smt ui` prints."""
    files = ui.files
    monkeypatch.setenv("MLFLOW_TRACKING_URI", ui.url)
    build(collect(files.project, files.layout), files.layout, ["imagenet1k"])
    cell = (files.layout.tables / "imagenet1k.md").read_text()
    (curves,) = set(re.findall(r"\[94\.00 .*?\]\((\S+?)\)", cell))
    tables, second = opened(ui), opened(ui, str(SECOND))
    with browser() as chromium:
        page = chromium.page(curves, lambda page: len(curve_paths(page)) == 2)
        assert all(f"{name} (eval/top1)" in page for name in NAMES)
        heights = sorted(float(path.split(",")[-1]) for path in curve_paths(page))
        assert heights[0] < heights[1]  # the better run ends higher up
        page = chromium.page(tables, lambda page: len(curve_paths(page)) >= 4)
        assert all(name in page for name in NAMES)
        assert page.index("ImageNet-1K") < page.index("eval/top1") < page.index("train/loss")
        assert "train/grad_norm" not in page  # in a section that is closed
        page = chromium.page(second, lambda page: len(curve_paths(page)) >= 2)
        assert NAMES[1] in page and NAMES[0] not in page


def opened(ui, *names):
    """Return the link that `smt ui` prints where a server runs already."""
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ui.url}
    return ui.files.smt("ui", *names, env=environment).stdout.split()[-1]


@pytest.mark.servers
@pytest.mark.parametrize(
    ("names", "runs"), [(["imagenet1k"], [0, 1]), ([T], [0, 1]), ([f"{T}-seed1"], [1])]
)
def test_a_link_leads_to_the_runs_of_a_table_or_to_those_that_are_named(ui, names, runs):
    key = opened(ui, *names).rpartition("viewStateShareKey=")[2]
    experiment = json.loads(get(f"{ui.url}/api/2.0/mlflow/experiments/get?experiment_id=1"))
    tags = {tag["key"]: tag["value"] for tag in experiment["experiment"]["tags"]}
    view = json.loads(tags[f"mlflow.sharedViewState.{key}"])
    charts = [chart["metricKey"] for chart in view["compareRunCharts"]]
    assert charts == ["eval/top1", "train/loss", "eval/loss"]
    request = {"experiment_ids": ["1"], "max_results": 10, "filter": view["searchFilter"]}
    found = json.loads(get(f"{ui.url}/api/2.0/mlflow/runs/search", request))["runs"]
    assert sorted(run["info"]["run_name"] for run in found) == [NAMES[seed] for seed in runs]


@pytest.mark.servers
@pytest.mark.parametrize("names", [["coco_mask_rcnn"], [f"{T}-seed0", "imagenet1k_smt_small"]])
def test_runs_that_were_not_sent_are_one_line_with_the_next_command(ui, names):
    environment = {**os.environ, "MLFLOW_TRACKING_URI": ui.url}
    done = ui.files.smt("ui", *names, env=environment, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert "is in MLflow at demo scale" in done.stderr and "smt sync" in done.stderr


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["imagnet1k"], "no table or run 'imagnet1k'; did you mean imagenet1k or "),
        (["drift"], "no table or run 'drift'; valid: a table (imagenet1k, imagenet22k, "),
        ([T, f"{T}-seed7"], f"no run '{T}-seed7'; did you mean {T}-seed0 or {T}"),
        ([T, "imagenet22k"], "imagenet22k is a table, and is shown alone: smt ui imagenet22k"),
    ],
)
def test_an_unknown_name_is_one_line_with_the_nearest_and_starts_nothing(files, names, message):
    done = files.smt("ui", *names, check=False)
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)
    assert message in done.stderr and not done.stdout


def curve_paths(page):
    """Return the SVG paths of a page's curves; Plotly draws each twice, once for its legend."""
    return set(re.findall(r'<path class="js-line"[^>]*? d="([^"]+)"', page))


def test_a_port_in_use_is_one_line_with_another_that_is_free(files):
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", 0))
        taken.listen()
        port = taken.getsockname()[1]
        done = files.smt("ui", "--port", str(port), check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"--port {port}" in done.stderr
    other = int(re.search(r"smt ui --port (\d+)", done.stderr).group(1))
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", other))


def test_an_address_of_another_machine_is_one_line(files):
    done = files.smt("ui", "--host", "192.0.2.1", "--port", "5999", check=False)
    assert done.returncode == 2
    assert "--host 192.0.2.1" in done.stderr
    assert done.stderr.count("\n") == 1
