"""The report: one page, which stands alone and says how everything is."""

import base64
import math
import re
import shutil
import subprocess
import sys
from dataclasses import replace
from html.parser import HTMLParser
from xml.etree import ElementTree

import pytest
from PIL import Image

from smt.config.experiments import Run
from smt.report import figures, plots
from smt.report.agreement import Agreement, agreements, places, verdicts
from smt.report.build import build
from smt.report.collect import collect
from smt.report.figures import Band, Curve
from smt.report.inline import inline_svg
from smt.report.page import Report
from smt.report.plots import save_all
from smt.report.predictions import predictions
from smt.runs.atomic import read_json, write_json
from smt.runs.paths import Layout
from smt.tracking.sync import sync
from tests.helpers.browser import browser
from tests.helpers.run_files import PARENT, B, RunFiles, S, T
from tests.integration.report.test_figures import DETECTOR, finish_detector
from tests.integration.report.test_trajectory import begin, finish

SHOWN = 10
"""Figures of the report below that show something: the others say why they do not."""

pytestmark = pytest.mark.xdist_group("report")  # what they share is made once


class Page(HTMLParser):
    """What a page is made of."""

    def __init__(self, text):
        super().__init__()
        self.text, self.tags, self.ids, self.hrefs, self.attributes = "", [], [], [], []
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        self.tags.append(tag)
        self.attributes += [(tag, *each) for each in attrs]
        self.ids += [value for name, value in attrs if name == "id"]
        self.hrefs += [value for name, value in attrs if name == "href"]

    def handle_data(self, data):
        self.text += data

    @property
    def words(self):
        return " ".join(self.text.split())


def report(files):
    return Report(collect(files.project, files.layout), files.layout)


def page_of(files):
    """Return the page without learning curves and peers, whose figures take most of its time."""
    content = report(files)
    content.curves, content.peers = [], []
    return Page(content.html())


@pytest.fixture(scope="module")
def parts(tmp_path_factory, empty_database):
    """Paper scale: SMT-T done, SMT-S in parts, one off track, two failed, one outdated."""
    with pytest.MonkeyPatch.context() as environment:
        environment.delenv("MLFLOW_TRACKING_URI", raising=False)
        files = RunFiles(tmp_path_factory.mktemp("parts"), scale="paper", seeds=(0, 1, 2))
        shutil.copy(empty_database, files.layout.results / "mlflow.db")
        yield fill(files)


@pytest.fixture(scope="module")
def made(parts):
    return report(parts)


@pytest.fixture(scope="module")
def html(made):
    return made.html()


def fill(files):
    for seed, top1 in enumerate((82.0, 82.2, 82.4)):
        finish(files, Run(experiment=T, seed=seed), {29: 53.0, 30: 53.0 + seed, 300: top1})
    for seed, top1 in enumerate((83.0, 83.5)):
        finish(files, Run(experiment=S, seed=seed), {29: 54.0, 30: 54.0 + seed, 300: top1})
    begin(files, Run(experiment=S, seed=2), {29: 41.0, 30: 41.2})
    files.fail(Run(experiment=B, seed=1), "the loss is not finite at step 7 <b>&_%#</b>")
    (files.work_dir(Run(experiment=B, seed=1)) / "train.log").write_text("epoch 0\n")
    files.fail(Run(experiment=PARENT, seed=0), "no space left on device")
    old = Run(experiment="ablation_heads_1", seed=0)
    files.finish(old, 81.0, epochs=1)
    write_json(files.layout.metrics(old), read_json(files.layout.metrics(old)) | {
        "fingerprint": "f" * 64})  # fmt: skip
    shutil.rmtree(files.work_dir(old))
    files.write_sizes()
    sync(files.project, files.layout)
    return files


# --- what it says ------------------------------------------------------------------------------


def test_it_counts_runs_and_published_numbers_on_top(html):
    words = Page(html).words
    assert "5 of 64 done" in words
    assert "5 done 1 stopped 2 failed 1 outdated 55 not started" in words
    assert "2 of 43 reproduced or within noise" in words  # top-1 of SMT-T and SMT-S
    assert "2 failed 1 off track" in words


def test_it_lists_unfinished_runs_with_reasons(html):
    words = Page(html).words
    assert "1 failed: the loss is not finite at step 7 <b>&_%#</b> imagenet1k_smt_base, seed 1" in (
        words
    )
    assert "<b>&amp;_%#" not in html and "&lt;b&gt;&amp;_%#&lt;/b&gt;" in html
    assert (
        "1 outdated: params, data or code version changed since it was trained (as ffffffffffff)"
        in words
    )
    assert "imagenet1k_smt_small-seed2: off track: top-1 41.2 at epoch 30, reference" in words
    assert f"2 not started: waits for {PARENT}-seed0, which has failed" in words
    assert "ablation_heads_2, seeds 0, 1, 2" in words


def test_it_has_every_table_discrepancy_and_figure(parts, made, html):
    words = Page(html).words
    for table in parts.project.tables.values():
        assert table.caption in words
    for discrepancy in parts.project.discrepancies:
        assert " ".join(discrepancy.subject.split()) in words
    titles = figures.titles(parts.project)
    plots = (*made.curves, made.accuracy, *(plot for _, plot in made.peers), made.agreement)
    assert {each.title for each in plots} == set(titles.values())
    assert "sample standard deviation (n - 1 in its denominator)" in words
    assert "no more than 0.2" in words


def test_it_shows_the_provenance_of_results(html):
    words = Page(html).words
    assert "Code c0ffee" in words
    assert "Machines node1" in words
    assert "Training time 0.09 h of 5 runs" in words  # 61.5 s each
    assert "GPUs none" in words


def test_a_published_number_stands_once_whichever_tables_it_is_in(parts):
    rows = agreements(collect(parts.project, parts.layout))
    assert len(rows) == len({each.label for each in rows}) == 43
    first = rows[0]
    assert not any(each.label.startswith("Component ladder") for each in rows)  # derived
    assert (first.label, first.reported, first.kind) == ("SMT-T, top-1", 82.2, "reproduced")
    assert verdicts(rows) == {"reproduced": 1, "below": 2, "within noise": 1, "not run": 39}


def test_outside_of_its_table_a_detector_is_labelled_with_the_table(parts):
    names = places(parts.project)
    assert names["coco_mask_rcnn_3x_smt_small"] == "COCO, Mask R-CNN: SMT-S, 3x"
    assert names[T] == "SMT-T"
    labels = [each.label for each in agreements(collect(parts.project, parts.layout))]
    assert "COCO, Mask R-CNN: SMT-S, 3x, mask AP" in labels
    assert "COCO, Mask R-CNN: SMT-S, 3x, mask AP75" in labels  # of a table that is not the first


# --- what was trained again -------------------------------------------------------------------


def add_audit(files, run, outcomes, stretches=4):
    """Write what `smt audit` does of stretches with these outcomes."""
    common = {"experiment": run.experiment, "seed": run.seed, "scale": files.scale}
    final = read_json(files.layout.metrics(run)) | {
        "journal": {"sha256": "cd" * 32, "bytes": 1, "lines": 1}
    }
    write_json(files.layout.metrics(run), final)
    environment = {"world_size": 1, "threads": 1, "device": "cpu", "precision": "fp32"}
    replays = [
        {"start_step": step, "end_step": step + 1, "outcome": outcome, "host": "node1", "at": 1.0,
         "environment": environment}
        for step, outcome in enumerate(outcomes)
    ]  # fmt: skip
    audited = {
        **common, "fingerprint": final["fingerprint"], "weights_sha256": final["weights_sha256"],
        "journal_sha256": "cd" * 32, "stretches": stretches, "replays": replays,
    }  # fmt: skip
    write_json(files.layout.audit(run), audited)


def test_what_was_trained_again_of_a_run_is_said(files):
    run, other = (Run(experiment=name, seed=0) for name in (T, S))
    for each in (run, other):
        files.finish(each, 82.0)
    name, text = report(files).provenance[-1]
    assert name == "Trained again" and text.startswith("no part of any run")
    add_audit(files, run, ["equal", "equal", "differs"])
    sync(files.project, files.layout)
    said = "3 of 4 stretches trained again, 2 equal to the byte, 1 differs"
    assert report(files).provenance[-1] == (f"Trained again: {run}", said)
    assert f"Trained again: {run}" in page_of(files).words


def test_an_audit_of_former_weights_is_not_said_and_a_damaged_one_is_named(files):
    run = Run(experiment=T, seed=0)
    files.finish(run, 82.0)
    add_audit(files, run, ["equal"])
    sync(files.project, files.layout)
    path = files.layout.audit(run)
    write_json(path, read_json(path) | {"weights_sha256": "ef" * 32})
    assert report(files).provenance[-1][0] == "Trained again"
    path.write_text("{")
    assert "audit.json: is cut off" in report(files).provenance[-1][1]


# --- pictures of what classifiers compute -------------------------------------------------------


def add_pictures(files, run, weights_sha256="ab" * 32, names=("modulators", "class_activation")):
    """Write pictures of a run as `smt look` does; return their contents in base64."""
    folder = files.layout.pictures(run)
    folder.mkdir(parents=True)
    contents = []
    for shade, name in enumerate(names):
        Image.new("RGB", (30, 40), (shade, 0, 0)).save(folder / f"{name}.webp")
        contents.append(base64.b64encode((folder / f"{name}.webp").read_bytes()).decode())
    record = {"weights_sha256": weights_sha256, "images": 16, "resolution": 224}
    write_json(folder / "pictures.json", {**record, "files": [f"{name}.webp" for name in names]})
    return contents


def sources(page):
    return [value for tag, name, value in page.attributes if tag == "img" and name == "src"]


def test_pictures_of_the_papers_models_are_in_the_page_and_of_others_are_not(files):
    shown, ablation = (Run(experiment=name, seed=0) for name in (T, "ablation_heads_1"))
    for run in (shown, ablation):
        files.finish(run, 82.0)
    contents = add_pictures(files, shown)
    add_pictures(files, ablation, names=("receptive_field",))
    sync(files.project, files.layout)
    page = page_of(files)
    assert sources(page) == [f"data:image/webp;base64,{content}" for content in contents]
    alts = [value for tag, name, value in page.attributes if tag == "img" and name == "alt"]
    assert alts == [f"Modulator by stage of {shown}", f"Class activation of {shown}"]
    assert "#pictures" in page.hrefs and "pictures" in page.ids
    assert "No pictures yet of 6 models, none of whose runs is done." in page.words


@pytest.mark.parametrize("fault", ["other weights", "a missing file", "no pictures"])
def test_pictures_of_other_weights_or_that_are_missing_are_named_with_their_command(files, fault):
    run = Run(experiment=T, seed=0)
    files.finish(run, 82.0)
    if fault != "no pictures":
        add_pictures(files, run, "cd" * 32 if fault == "other weights" else "ab" * 32)
    if fault == "a missing file":
        (files.layout.pictures(run) / "modulators.webp").unlink()
    sync(files.project, files.layout)
    page = page_of(files)
    assert not sources(page)
    command = f"snakemake pictures --config scale={files.scale}"
    assert f"of {run}, which {command} makes" in page.words


def test_a_damaged_record_of_pictures_is_one_line_and_the_page_is_made(files):
    run = Run(experiment=T, seed=0)
    files.finish(run, 82.0)
    add_pictures(files, run)
    (files.layout.pictures(run) / "pictures.json").write_text('{"files": ')
    sync(files.project, files.layout)
    done = files.smt("report", "--scale", files.scale)
    assert "pictures.json: is cut off" in done.stderr and "Traceback" not in done.stderr
    assert "pictures.json: is cut off" in files.layout.report.read_text()


# --- predictions -------------------------------------------------------------------------------


def keep_samples(files, run):
    picture = Image.new("RGB", (40, 30), "teal")
    picture.save(files.layout.samples(run), "JPEG")
    return base64.b64encode(files.layout.samples(run).read_bytes()).decode()


def test_pictures_of_detectors_are_in_the_page_itself(files):
    run = Run(experiment=DETECTOR, seed=0)
    finish_detector(files, run, 41.23)
    content = keep_samples(files, run)
    other = Run(experiment="coco_retinanet_smt_small", seed=0)
    finish_detector(files, other, 38.0)
    sync(files.project, files.layout)
    page = page_of(files)
    assert [value for tag, name, value in page.attributes if tag == "img" and name == "src"] == [
        f"data:image/jpeg;base64,{content}"
    ]
    (alt,) = (value for tag, name, value in page.attributes if tag == "img" and name == "alt")
    assert "COCO, Mask R-CNN: SMT-S, 1x: box AP 41.2" in alt
    assert "#predictions" in page.hrefs and "predictions" in page.ids
    assert "COCO, Mask R-CNN: SMT-S, 1x: box AP 41.2" in page.words
    assert f"of {other}, which smt evaluate makes" in page.words


def test_a_picture_of_former_weights_is_not_shown(files):
    run = Run(experiment=DETECTOR, seed=0)
    finish_detector(files, run, 41.23)
    keep_samples(files, run)
    former = read_json(files.layout.evaluation(run)) | {"fingerprint": "f" * 64}
    write_json(files.layout.evaluation(run), former)
    sync(files.project, files.layout)
    page = page_of(files)
    assert "img" not in page.tags
    assert f"of {run}, which smt evaluate makes" in page.words


def test_before_any_is_done_the_section_counts_unfinished_runs(parts, html):
    runs = [run for run in parts.project.runs if has_head(parts.project, run)]
    words = Page(html).words
    assert f"Predictions No picture yet of {len(runs)} runs, which are not done." in words


def test_a_project_of_classifiers_has_no_section_of_predictions(parts):
    found = collect(parts.project, parts.layout)
    runs = {run: each for run, each in found.runs.items() if not has_head(parts.project, run)}
    assert predictions(replace(found, runs=runs), parts.layout) is None


def has_head(project, run):
    return project.experiments[run.experiment].head is not None


# --- how it stands alone -----------------------------------------------------------------------


def test_it_loads_nothing_and_its_links_lead_somewhere(parts):
    results = collect(parts.project, parts.layout)
    build(results, parts.layout)
    save_all(results, parts.layout, [figures.ACCURACY])
    html = report(parts).html()
    page = Page(html)
    assert not {"script", "link", "iframe", "img", "object", "embed", "base"} & set(page.tags)
    assert "url(" not in html and "@import" not in html and "xmlns" not in html
    loading = {"src", "srcset", "data", "action", "poster", "background"}
    assert not [each for each in page.attributes if each[1] in loading]
    assert len(page.ids) == len(set(page.ids))
    for href in page.hrefs:
        if href.startswith("#"):
            assert href[1:] in page.ids
        elif not href.startswith("http://127.0.0.1:5000/#/"):
            assert (parts.layout.root / href).is_file(), href
    assert "tables/imagenet1k.csv" in page.hrefs
    (log,) = [href for href in page.hrefs if href.endswith("train.log")]
    assert log.startswith(f"runs/{B}/seed1/work-")


def test_files_that_are_not_there_are_not_linked(parts):
    shutil.rmtree(parts.layout.tables, ignore_errors=True)
    assert not any("tables/" in href for href in page_of(parts).hrefs)


def test_the_same_results_make_the_same_page(parts):
    assert report(parts).html() == report(parts).html()


def test_figures_have_labels_and_the_colours_of_the_page(html):
    shown = [ElementTree.fromstring(svg) for svg in re.findall(r"<svg.*?</svg>", html, re.DOTALL)]
    assert len(shown) == SHOWN
    assert all(svg.get("role") == "img" and svg.get("aria-label") for svg in shown)
    assert "SMT-S on ImageNet-1K: top-1 83.25, 2 seeds" in shown[1].get("aria-label")
    assert "SMT-T on ImageNet-1K: top-1 83.25" not in html
    colours = {colour for svg in shown for each in svg.iter() for colour in
               re.findall(r"#[0-9a-f]{6}|black|white", each.get("style", ""))}  # fmt: skip
    assert not colours, "a figure would not follow the dark mode"
    assert "SMT-T on ImageNet-1K, validation top-1 (%) at epoch 300: 82.20 ± 0.20" in html


def test_before_any_run_it_is_there(make_files):
    files = make_files(scale="paper")
    (files.layout.results / "mlflow.db").unlink()
    shutil.rmtree(files.layout.root)
    done = files.smt("report", "--scale", "paper")
    assert f"not started. {files.layout.report}" in done.stdout
    words = Page(files.layout.report.read_text()).words
    assert f"0 of {len(files.project.runs)} done" in words
    assert "No run has begun." in words
    assert "smt data manifest imagenet1k" in words
    assert not (files.layout.results / "mlflow.db").exists()


def test_at_a_scale_with_a_notice_nothing_is_compared(files):
    files.finish(Run(experiment=T, seed=0), 96.0)
    sync(files.project, files.layout)
    words = page_of(files).words
    assert files.project.scale.notice in words
    assert "43 that this scale is not compared with" in words
    assert "reproduced or within noise" not in words


def test_the_command_writes_it_without_torch(files):
    script = (
        "import sys; from smt.cli import cli; cli(sys.argv[1:], standalone_mode=False); "
        "assert not {'torch', 'torchvision', 'timm'} & set(sys.modules)"
    )
    arguments = files.command("report", "--scale", "demo")[3:]
    done = subprocess.run(
        [sys.executable, "-c", script, *arguments], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert files.layout.report.is_file()


def test_a_folder_that_cannot_be_written_is_one_line(files, read_only_folder):
    files.layout = Layout("demo", read_only_folder)
    done = files.smt("report", "--scale", "demo", check=False)
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert f"{read_only_folder}/demo: no permission to write there" in done.stderr


# --- figures -----------------------------------------------------------------------------------


def agreement(*rows):
    """Return the plot of some published numbers, and what a page shows under a mouse."""
    plot = plots.agreement("title", rows)
    return plot, [title.text for title in ElementTree.fromstring(inline_svg(plot)).iter("title")]


def test_dots_lie_in_the_band_where_they_are_reproduced():
    plot, titles = agreement(
        Agreement("in", 80.0, 0.2, None, False, 0.2, "reproduced", "in"),
        Agreement("out", 80.0, -0.3, 0.1, False, 0.2, "below", "out"),
        Agreement("none", 80.0, None, None, False, 0.2, "not-started", "none"),
    )
    (axes,) = plot.figure.axes
    bands = [(band.get_x(), band.get_x() + band.get_width()) for band in axes.patches]
    assert bands == [pytest.approx((-0.2, 0.2))] * 3
    dots = [line.get_xydata().tolist() for line in axes.lines if line.get_marker() == "o"]
    assert dots == [[[0.2, 0.0]], [[-0.3, 1.0]]]
    assert titles == [
        *(f"{name}: reported 80.0 ± 0.2" for name in ("in", "out", "none")),
        "in: in, +0.20",
        "out: out, -0.30, 95 % interval ± 0.10",
    ]


def test_whiskers_are_prediction_intervals_dashed_where_they_are_of_others():
    plot, titles = agreement(
        Agreement("own", 80.0, 0.1, 0.3, False, 0.2, "reproduced", "own"),
        Agreement("others", 80.0, 0.1, 0.3, True, 0.2, "reproduced", "others"),
        Agreement("unknown", 80.0, 0.3, None, False, 0.2, "no verdict", "unknown"),
        Agreement("long", 80.0, 0.1, 50.0, False, 0.2, "within-noise", "long"),
    )
    (axes,) = plot.figure.axes
    whiskers = [
        (*line.get_xdata(), line.get_linestyle())
        for line in axes.lines
        if line.get_marker() == "None" and line.get_linestyle() != ":"
    ]
    own, others, long = whiskers
    assert own == pytest.approx((-0.2, 0.4, "-")) and others == pytest.approx((-0.2, 0.4, "--"))
    assert long[:2] == axes.get_xlim(), "it ends at the edge"
    assert "own: own, +0.10, 95 % interval ± 0.30" in titles


def test_a_seed_under_way_has_a_thin_line_of_its_own_and_no_part_in_the_mean(parts, html):
    curves = figures.curves(collect(parts.project, parts.layout), figures.CURVES)
    small = curves[1]
    assert (small.seeds, [each.label for each in small.apart]) == (
        2, ["SMT-S on ImageNet-1K, seed 2, stopped"]
    )  # fmt: skip
    assert small.score.mean[:2] == (54.0, 54.5)
    assert small.apart[0].score.mean == (41.0, 41.2)
    assert "SMT-S on ImageNet-1K, seed 2, stopped, validation top-1 (%) at epoch 30: 41.20" in html


def test_long_lines_show_values_under_a_mouse_at_some_points_and_at_the_last():
    epochs = tuple(float(epoch) for epoch in range(1, 301))
    band = Band(epochs, epochs, (0.0,) * 300)
    plot = plots.learning_curves("name", "title", [Curve("a", 1, band, band, "top1")])
    losses, scores = plot.hovers.values()
    assert len(losses) <= plots.HOVERS + 1
    assert losses[-1] == "a, training loss at epoch 300: 300.000"
    titles = [title.text for title in ElementTree.fromstring(inline_svg(plot)).iter("title")]
    assert titles == losses + scores


def test_a_loss_that_is_not_finite_leaves_the_values_of_the_others_in_place():
    losses = Band((1.0, 2.0, 3.0), (2.0, math.nan, 1.0), (0.0,) * 3)
    plot = plots.learning_curves("name", "title", [Curve("a", 1, losses, losses, "top1")])
    svg = ElementTree.fromstring(inline_svg(plot))
    assert [title.text for title in svg.iter("title")][:2] == [
        "a, training loss at epoch 1: 2.000", "a, training loss at epoch 3: 1.000"
    ]  # fmt: skip


# --- in a browser ------------------------------------------------------------------------------

FRAME = '<iframe width="{width}" height="900" srcdoc="{page}"></iframe>'
MEASURE = """{frames}
<script>onload = () => {{
  const measured = [...document.querySelectorAll("iframe")].map(frame => {{
    const page = frame.contentDocument, root = page.documentElement;
    return `<pre>${{root.scrollWidth}} ${{root.clientWidth}} `
      + `${{page.querySelectorAll("svg").length}}</pre>`;
  }});
  document.body.innerHTML = measured.join("");
}};</script>"""


@pytest.mark.browser
def test_a_browser_shows_it_without_scrolling_sideways(parts, tmp_path):
    widths = (400, 1400)
    build(collect(parts.project, parts.layout), parts.layout)
    page = report(parts).html().replace("&", "&amp;").replace('"', "&quot;")
    frames = "".join(FRAME.format(width=width, page=page) for width in widths)
    (tmp_path / "measure.html").write_text(MEASURE.format(frames=frames))
    with browser() as chromium:
        said = chromium.page((tmp_path / "measure.html").as_uri(), measured)
    for width, (needed, shown, drawings) in zip(widths, measured(said), strict=True):
        assert width - 20 <= int(shown) <= width
        assert needed == shown
        assert int(drawings) == SHOWN


def measured(page):
    return re.findall(r"<pre>(\d+) (\d+) (\d+)</pre>", page)
