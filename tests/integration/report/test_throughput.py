"""Images a second: published and measured here, each in a column that names its machine."""

import csv
import os

import pytest

from smt.report import throughput
from smt.report.build import build, grid
from smt.report.collect import collect
from smt.report.throughput import ThroughputRecord
from smt.runs.paths import Layout
from tests.helpers import ROOT, forkserver

A800, UNNAMED = "Published (images/s) one A800, batch 64", "Published (images/s) GPU not named"

CPU = "Here (images/s) a CPU, 1 thread, fp32, batch 8"


def measured(machine="a CPU", threads=1, **rates):
    return ThroughputRecord(
        machine=machine, device="cpu" if threads else "cuda", threads=threads, precision="fp32",
        batch=8, resolution=224, torch="2.14.1", rates=rates,
    )  # fmt: skip


@pytest.fixture
def files(make_files):
    files = make_files(scale="paper")
    files.write_sizes()
    return files


def table(files):
    """Return the table, and its cells by model and heading."""
    content = grid(collect(files.project, files.layout), throughput.NAME)
    titles = [column.full_title for column in content.columns]
    rows = {row[0].text: [cell.text for cell in row] for row in content.rows}
    return content, {name: dict(zip(titles, row, strict=True)) for name, row in rows.items()}


def test_published_speeds_have_their_hardware_and_source(files):
    content, rows = table(files)
    assert rows["SMT-T"][A800] == "636 [a]" and rows["SMT-T"][UNNAMED] == ""
    assert rows["SMT-L"][A800] == "" and rows["SMT-L"][UNNAMED] == "158 [b]"
    assert rows["MaxViT-B"][A800] == "306 [a]"
    assert rows["SMT-T"]["Parameters (M) published"] == "11.5 [c]"
    assert rows["SMT-T"]["Parameters (M) measured"] == "11.51"
    assert any("Table 9" in note for note in content.notes)


def test_without_a_measurement_the_table_says_how_to_make_one(files):
    content, rows = table(files)
    assert not any("Here" in heading for heading in rows["SMT-T"])
    assert any("run python benchmarks/throughput.py" in note for note in content.notes)


def test_each_machine_and_setting_has_a_column_of_its_own(files):
    throughput.write(files.layout, measured(smt_tiny=9.0))
    throughput.write(files.layout, measured(smt_tiny=10.04, smt_small=5.0))  # in its place
    throughput.write(files.layout, measured("a GPU", None, smt_tiny=3000.0))
    content, rows = table(files)
    cpu, gpu = (
        "Here (images/s) a CPU, 1 thread, fp32, batch 8",
        "Here (images/s) a GPU, fp32, batch 8",
    )
    assert (rows["SMT-T"][cpu], rows["SMT-T"][gpu]) == ("10.0", "3000.0")
    assert (rows["SMT-S"][cpu], rows["SMT-S"][gpu]) == ("5.0", "")
    assert rows["BiFormer-T"][cpu] == "" and rows["SMT-T"][A800] == "636 [a]"
    assert not any("run python" in note for note in content.notes)
    build(collect(files.project, files.layout), files.layout, [throughput.NAME])
    with (files.layout.tables / "throughput.csv").open() as file:
        tiny = next(row for row in csv.DictReader(file) if row["name"] == "smt_tiny")
    assert float(tiny["a-cpu-1-thread-fp32-batch-8-224"]) == 10.04


@pytest.mark.parametrize(
    ("content", "fault"),
    [('{"machine": "a CPU", "dev', "is cut off"), ('{"machine": 3}', "machine"), ("[]", "")],
)
def test_a_damaged_file_is_one_line_and_the_others_are_shown(files, content, fault):
    path = throughput.write(files.layout, measured(smt_tiny=9.0))
    (path.parent / "broken.json").write_text(content)
    done = files.smt("tables", "--scale", "paper", throughput.NAME)
    (line,) = [line for line in done.stderr.splitlines() if "broken.json" in line]
    assert fault in line and "remove it and run: python benchmarks/throughput.py" in line
    shown, rows = table(files)
    assert rows["SMT-T"][CPU] == "9.0"
    assert any(note.startswith("Not read: ") and fault in note for note in shown.notes)


def test_results_of_every_scale_have_the_same_measurements(files):
    throughput.write(files.layout, measured(smt_tiny=9.0))
    demo = Layout("demo", files.layout.results, files.layout.data)
    assert throughput.Throughput.read(demo).measured[0].rates == {"smt_tiny": 9.0}


def test_the_benchmark_writes_what_the_table_reads(files):
    done = forkserver.run(
        str(ROOT / "benchmarks" / "throughput.py"), "--device", "cpu", "--batch", "1",
        "--rounds", "1", "--models", "smt_tiny",
        cwd=files.folder, env={**os.environ, "SMT_RESULTS": str(files.layout.results)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    (entry,) = collect(files.project, files.layout).throughput.measured
    assert (entry.device, entry.threads, entry.precision, entry.batch) == ("cpu", 1, "fp32", 1)
    _, rows = table(files)
    shown = rows["SMT-T"][f"Here (images/s) {entry.machine}, 1 thread, fp32, batch 1"]
    assert float(shown) == pytest.approx(entry.rates["smt_tiny"], abs=0.05)
