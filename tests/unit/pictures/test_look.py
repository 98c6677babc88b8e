"""`smt look` on files: weights of ours and released ones, and whatever else people give it."""

import json

import pytest
import torch
from PIL import Image

from smt.commands import look as look_command
from smt.models import released, weights, zoo
from smt.runs.atomic import sha256
from tests.helpers import released_files
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

NAMES = ["modulators", "mhmc_heads", "receptive_field", "class_activation"]
SMOKE = ("--scale", released_files.SCALE)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Two images, released weights, and the same as a run of this project exports them."""
    folder = tmp_path_factory.mktemp("look")
    for number, colour in enumerate(("red", "green")):
        Image.linear_gradient("L").convert("RGB").resize((80 + number, 60)).save(
            folder / f"{colour}.png"
        )
    state = released_files.state(classes=10)
    released_files.write(folder / "released.pth", state)
    model = project_at(released_files.SCALE).models["smt_tiny"]
    ours = released.from_released(
        state, zoo.skeleton(model, num_classes=10).state_dict(), folder / "released.pth"
    )
    names = {"experiment": "imagenet1k_smt_tiny", "scale": released_files.SCALE, "seed": "1"}
    weights.save(ours, folder / "ours.safetensors", names)
    trunk = {f"backbone.{name}": tensor for name, tensor in ours.items() if "head" not in name}
    detector = {**trunk, "neck.0.weight": torch.zeros(1), "head.boxes.bias": torch.zeros(1)}
    weights.save(detector, folder / "detector.safetensors", names)
    headless = {name: tensor for name, tensor in ours.items() if not name.startswith("head.")}
    weights.save(headless, folder / "trunk.safetensors", names)
    torch.save({"conv1.weight": torch.ones(1), "fc.weight": torch.ones(1)}, folder / "resnet.pth")
    torch.save({"a": state, "b": state}, folder / "several.pth")
    torch.save({"model": state, "model_ema": state}, folder / "averaged.pth")
    (folder / "run").mkdir()
    (folder / "run" / "model.safetensors").touch()
    (folder / "notes.txt").write_text("no weights\n")
    return folder


def look(folder, file, *options):
    return smt("look", folder / file, *options)


def test_pictures_of_a_runs_weights_and_their_record(folder, tmp_path):
    out = tmp_path / "out"
    result = look(folder, "ours.safetensors", folder / "red.png", folder / "green.png", "-o", out)
    assert result.returncode == 0, result.stderr
    for name in NAMES:
        with Image.open(out / f"{name}.png") as picture:
            assert min(picture.size) > 300, name
    record = json.loads((out / "pictures.json").read_text())
    assert record == {
        "files": [f"{name}.png" for name in NAMES],
        "images": 2,
        "resolution": 32,
        "weights_sha256": sha256(folder / "ours.safetensors"),
    }
    assert result.stdout.count("of the gradient 50% within") == 4


def test_released_weights_are_known_by_their_shapes_and_compute_the_same(folder, tmp_path):
    said = []
    for file, out in (("released.pth", "a"), ("ours.safetensors", "b")):
        options = (*SMOKE, "-o", tmp_path / out, "--format", "svg")
        result = look(folder, file, folder / "red.png", *options)
        assert result.returncode == 0, result.stderr
        assert {path.stem for path in (tmp_path / out).glob("*.svg")} == set(NAMES)
        said.append(result.stdout.splitlines()[-4:])
    assert said[0] == said[1] and said[0][0].startswith("stage 1: of the gradient")


def test_the_same_weights_give_the_same_bytes(folder, tmp_path):
    for out in ("a", "b"):
        options = (folder / "red.png", "-o", tmp_path / out)
        assert look(folder, "ours.safetensors", *options).returncode == 0
    for name in NAMES:
        assert (tmp_path / "a" / f"{name}.png").read_bytes() == (
            tmp_path / "b" / f"{name}.png"
        ).read_bytes()


def test_weights_without_a_classifier_have_the_other_pictures(folder, tmp_path):
    result = look(folder, "trunk.safetensors", folder / "red.png", "-o", tmp_path / "out")
    assert result.returncode == 0, result.stderr
    assert "no classifier: no class activation" in result.stdout
    assert {path.stem for path in (tmp_path / "out").glob("*.png")} == set(NAMES[:3])


@pytest.mark.parametrize("command", ["look", "export", "evaluate"])
def test_sides_have_an_upper_bound(folder, command):
    option = "--resolution" if command == "evaluate" else "--size"
    result = smt(command, folder / "ours.safetensors", option, "20000")
    assert result.returncode == 2 and "32<=x<=4096" in result.stderr


def test_a_folder_that_cannot_be_written_is_named_before_any_work(folder, monkeypatch):
    monkeypatch.setattr(look_command, "load_classifier", None)
    result = look(folder, "ours.safetensors", folder / "red.png", "-o", folder / "red.png")
    assert result.returncode == 2
    assert "red.png/pictures.json: Not a directory; give a folder" in result.stderr


@pytest.mark.parametrize(
    ("options", "key"), [((), "model"), (("--state", "model_ema"), "model_ema")]
)
def test_which_of_several_weights_were_taken_is_said(folder, options, key):
    # A stage that it has not: what is told of the file comes before any picture.
    result = look(folder, "averaged.pth", folder / "red.png", *SMOKE, "--stage", 4, *options)
    note, error = result.stderr.strip().splitlines()
    assert f"averaged.pth: it holds model, model_ema: {key} was taken" in note
    assert error.startswith("smt: error: ")


@pytest.mark.parametrize(
    ("file", "options", "code", "message"),
    [
        ("ours.safetensors", ("notes.txt",), 3, "notes.txt (no known format of images); give"),
        ("ours.safetensors", ("absent.png",), 3, "absent.png (No such file or directory); give"),
        ("ours.safetensors", ("run",), 3, "run (Is a directory); give files of whole images"),
        (
            "absent.pth",
            ("red.png",),
            2,
            "absent.pth cannot be read (No such file or directory); "
            "give a run's model.safetensors or",
        ),
        ("run", ("red.png",), 2, "run/model.safetensors"),
        ("notes.txt", ("red.png",), 2, "is a text file"),
        ("red.png", ("red.png",), 2, "is an image, not a checkpoint"),
        ("detector.safetensors", ("red.png",), 2, "are of a detector or segmenter"),
        ("ours.safetensors", ("red.png", "--stage", "4"), 2, "that have it: 1, 2, 3"),
        ("ours.safetensors", ("red.png", "--class", "10"), 2, "valid: 0 to 9"),
        ("ours.safetensors", ("red.png", "--model", "smt_tiy"), 2, "did you mean smt_tiny"),
        (
            "ours.safetensors",
            ("red.png", "--model", "smt_small"),
            2,
            "are not of smt_small at scale smoke: they are of smt_tiny;",
        ),
        (
            "ours.safetensors",
            ("red.png", "--scale", "paper"),
            2,
            "not of smt_tiny at scale paper: the file says that they are of imagenet1k_smt_tiny at "
            "scale smoke; give that model, and --scale smoke",
        ),
        (
            "released.pth",
            ("red.png",),
            2,
            "the names and shapes of no model of params/models.yaml at scale paper",
        ),
        (
            "released.pth",
            ("red.png", "--model", "smt_tiny"),
            2,
            "are not of smt_tiny at scale paper: missing block",
        ),
        ("resnet.pth", ("red.png",), 2, "are no SMT's: their parts are conv1, fc;"),
        (
            "several.pth",
            ("red.png", *SMOKE),
            2,
            "several states (a, b): name the one to take by --state KEY",
        ),
        ("several.pth", ("red.png", *SMOKE, "--state", "c"), 2, "valid: a, b"),
        ("released.pth", SMOKE, 2, "names no run of this project"),
    ],
    ids=lambda value: value if isinstance(value, str) else None,
)
def test_bad_input_is_one_line_and_writes_nothing(folder, tmp_path, file, options, code, message):
    given = [
        folder / option if option.endswith((".png", ".txt", "run")) else option
        for option in options
    ]
    out = tmp_path / "out"
    result = look(folder, file, *given, "-o", out)
    assert result.returncode == code
    (line,) = result.stderr.strip().splitlines()
    assert line.startswith("smt: error: ") and message in line
    assert not out.exists()
