"""`smt release`: models load in timm, have a card with their provenance, and are reproducible."""

import csv
import dataclasses
import json
import re
import shutil
import subprocess

import pytest
import timm
import torch
import yaml
from huggingface_hub import ModelCard
from safetensors import safe_open
from timm.data import resolve_model_data_config

from smt.errors import EXIT_UNVERIFIED
from smt.models import weights, zoo
from smt.release import card
from smt.release.pack import pack
from smt.release.selection import select_models
from smt.runs.atomic import sha256
from smt.runs.paths import Layout
from tests.helpers.finished_project import (
    ABLATION,
    CHILD,
    CHILD_384,
    CLASSIFIERS,
    PARENT,
    RESULTS,
    SMALL,
    T,
    copy,
    edit_json,
    edit_yaml,
    flip,
    layout,
    load,
    run_dir,
    work_dir,
)
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.versioned import SCALE

NAME = f"smt_tiny.{T}"


def release(project, *arguments, code=0):
    done = project.smt("release", *arguments)
    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    return done


def folder(project):
    return project.folder / RESULTS / "release"


def packed(project, name=NAME):
    (path,) = (folder(project) / name).glob("*.safetensors")
    return path


def content(project):
    return {
        str(path.relative_to(folder(project))): path.read_bytes()
        for path in folder(project).rglob("*")
        if path.is_file()
    }


@pytest.fixture(scope="module")
def released(finished, tmp_path_factory):
    """The finished project with a release of all of it."""
    project = copy(finished, tmp_path_factory.mktemp("release") / "project")
    done = release(project)
    assert "licence of the weights: not decided" in done.stdout
    return project


def test_a_release_has_a_folder_per_model_and_results(released):
    models = {NAME, f"smt_small.{SMALL}", f"smt_tiny_heads_1.{ABLATION}", f"smt_large.{PARENT}",
             f"smt_large.{CHILD}", f"smt_large.{CHILD_384}"}  # fmt: skip
    names = {path.name for path in folder(released).iterdir()}
    assert names == models | {"results-imagenet1k.csv", "results-imagenet22k.csv", "SHA256SUMS"}
    for name in models:
        path = packed(released, name)
        assert path.name == f"{name}-{sha256(path)[:8]}.safetensors"
        assert {file.name for file in path.parent.iterdir()} == {
            path.name, "README.md", "config.json"
        }  # fmt: skip
    done = subprocess.run(
        ["sha256sum", "-c", "--strict", "SHA256SUMS"], cwd=folder(released), capture_output=True,
        text=True,
    )  # fmt: skip
    assert done.returncode == 0 and done.stdout.count(": OK") == 3 * len(CLASSIFIERS) + 2, (
        done.stdout
    )


def test_the_tensors_are_those_that_were_trained(released):
    trained = weights.read(run_dir(released) / "model.safetensors")
    tensors = weights.read(packed(released))
    assert trained.keys() == tensors.keys()
    assert all(torch.equal(trained[name], tensors[name]) for name in trained)
    with safe_open(packed(released), framework="pt") as file:
        header = file.metadata()
    final = json.loads((run_dir(released) / "metrics.json").read_text())
    metadata = json.loads(header["smt"])
    assert header["format"] == "pt"
    assert metadata["fingerprint"] == final["fingerprint"]
    assert metadata["metrics"] == final["metrics"]
    assert metadata["exported_sha256"] == sha256(run_dir(released) / "model.safetensors")
    assert metadata["license"] == "unknown"


def test_timm_loads_the_folder(released):
    """The demo's models are not registered in timm, which reads their spec from config.json."""
    model = timm.create_model(f"local-dir:{folder(released) / NAME}", pretrained=True).eval()
    state = weights.read(run_dir(released) / "model.safetensors")
    assert all(torch.equal(tensor, state[name]) for name, tensor in model.state_dict().items())
    expected = zoo.build(load(released).models["smt_tiny"],
                    num_classes=10).eval()  # fmt: skip
    weights.load(expected, run_dir(released) / "model.safetensors")
    images = torch.randn(2, 3, 32, 32)
    with torch.inference_mode():
        torch.testing.assert_close(model(images), expected(images))
    config = resolve_model_data_config(model)
    assert tuple(config["input_size"]) == (3, 32, 32) and config["interpolation"] == "bicubic"
    at_384 = timm.create_model(
        f"local-dir:{folder(released) / f'smt_large.{CHILD_384}'}", pretrained=True
    )
    assert resolve_model_data_config(at_384)["crop_mode"] == "squash"


def test_the_usage_code_of_a_card_runs(released):
    card = (folder(released) / NAME / "README.md").read_text()
    (code,) = re.findall(r"```python\n(.*?)```", card, re.S)
    done = released.run(
        "python", "-c", f"import os; os.chdir({str(folder(released) / NAME)!r})\n{code}\n"
        "import torch; print(model(torch.randn(1, 3, 32, 32)).shape)",
    )  # fmt: skip
    assert "torch.Size([1, 10])" in done.stdout, done.stderr


def test_hugging_face_reads_the_card(released):
    card = ModelCard.load(folder(released) / NAME / "README.md")
    data = card.data.to_dict()
    assert data["license"] == "unknown" and data["library_name"] == "timm"
    assert data["pipeline_tag"] == "image-classification"
    final = json.loads((run_dir(released) / "metrics.json").read_text())["metrics"]
    values = {result.metric_name: result.metric_value for result in card.data.eval_results}
    assert values == {"Top-1 accuracy (%)": final["top1"], "Top-5 accuracy (%)": final["top5"]}
    assert card.data.model_name == NAME


def test_the_card_has_provenance_and_limitations(released):
    text = (folder(released) / NAME / "README.md").read_text()
    provenance = json.loads((work_dir(released) / "provenance.json").read_text())
    assert "**smoke scale: not comparable with the paper**" in text
    assert provenance["fingerprint"] in text and provenance["data"]["imagenet1k"] in text
    assert f"commit {provenance['git']['commit']}, with uncommitted changes" in text
    assert "| Top-1 (%) | 82.2 | " in text and "| not comparable |" in text
    assert "Seed 0, the first of 2, selected regardless of its accuracy." in text
    assert "The licence of these weights has not been decided" in text
    recipe = yaml.safe_load(re.findall(r"```yaml\n(.*?)```", text, re.S)[0])["recipe"]
    assert recipe == provenance["params"]["recipe"]
    assert provenance["hardware"]["host"] not in text


def test_results_have_timms_columns(released):
    with (folder(released) / "results-imagenet1k.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["model", "img_size", "top1", "top1_err", "top5", "top5_err",
                             "param_count", "crop_pct", "interpolation"]  # fmt: skip
    assert len(rows) == len(CLASSIFIERS) - 1  # the parent's are ImageNet-22K
    (row,) = [row for row in rows if row["model"] == NAME]
    final = json.loads((run_dir(released) / "metrics.json").read_text())["metrics"]
    assert row["top1"] == f"{final['top1']:.3f}" and row["img_size"] == "32"
    assert float(row["top1"]) + float(row["top1_err"]) == 100
    model = timm.create_model(f"local-dir:{folder(released) / NAME}", pretrained=False)
    assert row["param_count"] == f"{sum(p.numel() for p in model.parameters()) / 1e6:.2f}"
    assert (row["crop_pct"], row["interpolation"]) == ("0.875", "bicubic")


def test_a_second_release_has_the_same_bytes(released):
    before = content(released)
    release(released)
    assert content(released) == before


def test_a_run_without_a_validation_split_has_its_loss_in_the_card_alone(finished, tmp_path):
    """As ImageNet-22K at the paper's scale; the demo's data all have one."""
    paths = layout(finished)
    (model,) = select_models(load(finished), load(finished, "paper"), paths, [PARENT], "first")
    loss = {"train_loss": 2.5}
    final = model.final.model_copy(update={"metrics": loss})
    model = dataclasses.replace(model, final=final, seed_metrics={0: loss})
    text = card.text(model, "weights.safetensors", card.Licence(), False)
    assert "no validation split; the last training loss is 2.5000" in text
    assert "model-index" not in text

    results = tmp_path / "results"
    target = Layout(SCALE, results, paths.data)
    shutil.copytree(paths.results, results)
    files = {path.name for path in pack([model], target, card.Licence())}
    assert "SHA256SUMS" in files and not any(name.startswith("results-") for name in files)


# --- options -----------------------------------------------------------------------------------


def test_the_best_seed_is_released_on_request_and_the_card_says_so(project):
    tops = [json.loads((run_dir(project, T, seed) / "metrics.json").read_text())["metrics"]["top1"]
            for seed in (0, 1)]  # fmt: skip
    best = tops.index(max(tops))
    release(project, T)
    assert '"seed": 0' in header(project)
    release(project, T, "--seed", "best")
    assert f'"seed": {best}' in header(project)
    text = (folder(project) / NAME / "README.md").read_text()
    assert f"Seed {best}, the best of 2 by top-1 on the validation set" in text
    release(project, T, "--seed", "1")
    assert '"seed": 1' in header(project)


def header(project):
    with safe_open(packed(project), framework="pt") as file:
        return file.metadata()["smt"]


def enable_verdicts(project):
    """Give cards verdicts at this scale, as at the paper's."""
    edit_yaml(project.folder / "params/scales.yaml", lambda it: it[SCALE].update(notice=None))


def test_a_verdict_uses_the_seeds_of_all_experiments_of_the_recipe(project):
    enable_verdicts(project)
    release(project, SMALL)
    tops = [json.loads((run_dir(project, T, seed) / "metrics.json").read_text())["metrics"]["top1"]
            for seed in (0, 1)]  # fmt: skip
    # Two seeds of SMT-T, one of SMT-S: s of 1 degree of freedom, whose t is 12.706.
    interval = 12.706205 * abs(tops[0] - tops[1]) / 2**0.5 * 2**0.5
    text = (folder(project) / f"smt_small.{SMALL}" / "README.md").read_text()
    (line,) = (line for line in text.splitlines() if line.startswith("| Top-1 (%) |"))
    assert f"| ± {interval:.2f} |" in line
    assert "95 % interval" in text and "95 in 100 lie in it" in text
    assert "not comparable" not in text


def test_runs_that_a_verdict_depends_on_are_verified(project):
    edit_json(run_dir(project, T, 1) / "metrics.json", lambda it: it["metrics"].update(top1=99.0))
    assert release(project, SMALL).returncode == 0  # no verdict at this scale
    enable_verdicts(project)
    done = release(project, SMALL, code=EXIT_UNVERIFIED)
    assert f"{T}/seed1/metrics.json: metrics.top1: 99.0 is inconsistent with" in done.stderr


def test_the_licence_of_an_option(project):
    release(project, T, "--licence", "cc-by-nc-4.0")
    card = ModelCard.load(folder(project) / NAME / "README.md")
    assert card.data.license == "cc-by-nc-4.0" and "licensed under cc-by-nc-4.0." in card.text
    assert '"license": "cc-by-nc-4.0"' in header(project)
    link = ("--licence-name", "my-1.0", "--licence-link", "https://example.org/licence")
    release(project, T, "--licence", "other", *link)
    data = ModelCard.load(folder(project) / NAME / "README.md").data.to_dict()
    assert (data["license"], data["license_name"]) == ("other", "my-1.0")


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["imagenet1k_smt_tinny"], ["did you mean imagenet1k_smt_tiny"]),
        (["--seed", "5"], ["--seed 5: not a seed of ", "valid: 0"]),
        (["--seed", "worst"], ["--seed worst: valid: first, best or the number"]),
        (["--licence", "MIT or so"], ["--licence MIT or so: valid: an identifier"]),
        (["--licence", "other"], ["--licence other takes --licence-name and --licence-link"]),
        (["--licence", "mit", "--licence-name", "x"], ["no other licence does"]),
    ],
)
def test_wrong_options_are_one_line(finished, arguments, words):
    done = release(finished, *arguments, code=2)
    assert all(word in done.stderr for word in words), done.stderr
    assert not folder(finished).exists()


# --- errors ------------------------------------------------------------------------------------


def test_a_run_that_is_not_done_is_refused(project):
    shutil.rmtree(run_dir(project, T, 0))
    done = release(project, code=2)
    assert f"{T}-seed0 is not started with the present params" in done.stderr
    assert f"smt train {T} --seed 0 --scale smoke" in done.stderr
    assert not folder(project).exists()
    release(project, CHILD)


def test_a_run_of_other_params_is_refused(project):
    project.set_rate("imagenet1k", 0.5)
    assert "is outdated with the present params" in release(project, T, code=2).stderr


def test_a_run_that_does_not_verify_is_refused(project):
    release(project)
    before = content(project)
    edit_json(run_dir(project, T, 1) / "metrics.json", lambda it: it["metrics"].update(top1=99.0))
    done = release(project, code=EXIT_UNVERIFIED)
    assert (
        "nothing was released: " in done.stderr
        and "metrics.top1: 99.0 is inconsistent with" in done.stderr
    )
    assert len(done.stderr.strip().splitlines()) == 1
    assert content(project) == before


def test_changed_weights_of_a_parent_are_refused(project):
    flip(run_dir(project, PARENT) / "model.safetensors")
    done = release(project, CHILD, code=EXIT_UNVERIFIED)
    assert f"{PARENT}/seed0/model.safetensors: SHA-256" in done.stderr


def test_a_run_that_was_not_evaluated_on_its_own_is_refused(project):
    (run_dir(project) / "evaluation.json").unlink()
    assert f"smt evaluate {T} --seed 0 --scale smoke" in release(project, T, code=2).stderr


def test_files_that_no_release_wrote_are_not_replaced(project):
    release(project, T)
    (folder(project) / "LICENSE").write_text("mine")
    done = release(project, T, code=2)
    assert "LICENSE: smt release did not write it" in done.stderr
    assert (folder(project) / "LICENSE").read_text() == "mine"


def test_a_detector_is_refused_for_timm_loads_classifiers(tmp_path):
    done = ProjectCopy(tmp_path / "project").smt("release", "coco_dino_smt_small")
    assert (done.returncode, done.stdout) == (2, "")
    assert done.stderr.count("\n") == 1
    assert "coco_dino_smt_small: only classifiers are released, " in done.stderr


# --- the paper's own models ----------------------------------------------------------------------


@pytest.mark.slow
def test_a_model_of_the_papers_size_loads_by_its_name_in_timm(finished, tmp_path):
    """SMT-T at the paper's size, trained for one epoch on digits."""
    project = copy(finished, tmp_path / "project")

    def change(scales):
        del scales["demo"]["models"]["smt_tiny"], scales[SCALE]["models"]
        scales[SCALE]["experiments"][T] = {"seeds": [0]}
        scales[SCALE]["recipes"]["imagenet1k"]["schedule"]["epochs"] = 1

    edit_yaml(project.folder / "params/scales.yaml", change)
    for command in ("train", "evaluate"):
        done = project.smt(command, T)
        assert done.returncode == 0, done.stderr
    release(project, T)
    path, state = packed(project), weights.read(run_dir(project) / "model.safetensors")
    by_path = timm.create_model("smt_tiny", num_classes=10, checkpoint_path=str(path))
    overlay = {"file": str(path), "num_classes": 10}
    by_overlay = timm.create_model(
        "smt_tiny", pretrained=True, num_classes=10, pretrained_cfg_overlay=overlay
    )
    by_folder = timm.create_model(f"local-dir:{path.parent}", pretrained=True)
    for model in (by_path, by_overlay, by_folder):
        assert model.state_dict().keys() == state.keys()
        assert all(torch.equal(t, state[name]) for name, t in model.state_dict().items())
    card = (path.parent / "README.md").read_text()
    assert f'timm.create_model("smt_tiny", num_classes=10, checkpoint_path="{path.name}")' in card
    assert "model_args" not in (path.parent / "config.json").read_text()
