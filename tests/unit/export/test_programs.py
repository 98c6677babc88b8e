"""Exported programs compute what the network does, at sizes other than their own."""

import subprocess
import sys
import textwrap

import pytest
import torch

from smt.export import check, programs
from smt.models import weights, zoo
from smt.runs.atomic import replacing
from tests.helpers.in_process import smt
from tests.helpers.params import project_at

SMOKE = project_at("smoke").models["smt_small"]
SIZE = 64


@pytest.fixture(scope="module")
def network():
    torch.manual_seed(0)
    model = zoo.build(SMOKE, num_classes=10)
    for parameter in model.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return model.eval()


@pytest.fixture(scope="module")
def file(network, tmp_path_factory):
    """The network as a run exports it."""
    path = tmp_path_factory.mktemp("weights") / "model.safetensors"
    names = {"experiment": "imagenet1k_smt_small", "scale": "smoke", "seed": "0"}
    weights.save(network.state_dict(), path, names)
    return path


def export(file, form, target, *options):
    return smt("export", file, "--format", form, "-o", target, "--size", SIZE, *options)


@pytest.fixture
def without_onnx(monkeypatch):
    for name in ("onnx", "onnxscript", "onnxruntime", "onnx_ir"):
        monkeypatch.setitem(sys.modules, name, None)  # an import of it fails


@pytest.mark.slow
def test_torch_export_takes_other_batches_and_sizes(file, network, tmp_path, without_onnx):
    target = tmp_path / "model.pt2"
    result = export(file, "torch_export", target)
    assert result.returncode == 0, result.stderr
    assert "tolerance 0.0001" in result.stdout
    for shape in ("1 × 64 × 64", "3 × 64 × 64", "3 × 128 × 128", "1 × 77 × 69"):
        assert shape in result.stdout
    module = torch.export.load(target).module()
    images = torch.randn(5, 3, 96, 160)
    with torch.no_grad():
        torch.testing.assert_close(module(images), network(images), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


@pytest.mark.slow
def test_onnx_takes_other_batches_and_sizes(file, network, tmp_path):
    onnxruntime = pytest.importorskip("onnxruntime")
    target = tmp_path / "model.onnx"
    result = export(file, "onnx", target)
    assert result.returncode == 0, result.stderr
    session = onnxruntime.InferenceSession(str(target), providers=["CPUExecutionProvider"])
    (given,) = session.get_inputs()
    assert given.name == "images" and given.shape[1] == 3
    images = torch.randn(5, 3, 96, 160)
    (logits,) = session.run(["logits"], {"images": images.numpy()})
    with torch.no_grad():
        torch.testing.assert_close(torch.from_numpy(logits), network(images), rtol=1e-4, atol=1e-5)
    assert [path.name for path in tmp_path.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("change", [1e-3, float("nan")])
def test_a_program_that_computes_something_else_is_refused_and_not_written(
    file, network, tmp_path, monkeypatch, change
):
    def wrong(program):
        return b"", lambda images: network(images).detach() * (1 + change)

    monkeypatch.setattr(programs, "export", lambda network, size: None)
    monkeypatch.setitem(programs.WRITERS, "torch_export", wrong)
    result = export(file, "torch_export", tmp_path / "model.pt2")
    assert result.returncode == 2
    line = result.stderr.strip().splitlines()[-1]
    assert line.startswith("smt: error: ") and "a logit differs" in line
    assert "nothing was written" in line and not list(tmp_path.iterdir())


def test_an_output_that_cannot_be_written_is_named_before_the_export(file, tmp_path, monkeypatch):
    monkeypatch.setattr(programs, "export", None)
    folder, below_file = tmp_path / "folder.pt2", file / "model.pt2"
    folder.mkdir()
    for target, cause in (
        (folder, "Is a directory"), ("/proc/model.pt2", "No such file or directory"),
        (below_file, "Not a directory"),
    ):  # fmt: skip
        result = export(file, "torch_export", target)
        assert result.returncode == 2
        (line,) = result.stderr.splitlines()
        assert line == f"smt: error: {target}: {cause}; give a file that can be written: -o FILE"
    assert not list(folder.iterdir())


def test_an_error_of_the_temporary_file_has_the_name_that_the_user_gave(tmp_path):
    (tmp_path / "model.pt2").mkdir()
    with pytest.raises(IsADirectoryError) as error, replacing(tmp_path / "model.pt2") as content:
        content.write(b"program")
    assert (error.value.filename, error.value.filename2) == (str(tmp_path / "model.pt2"), None)
    assert [path.name for path in tmp_path.iterdir()] == ["model.pt2"]


def test_sizes_that_a_program_does_not_take_are_named(network):
    def only_square(images):
        if images.shape[2] != images.shape[3]:
            raise ValueError("not square\nand more")
        with torch.no_grad():
            return network(images)

    found = check.compare(network, only_square, [(64, 64), (64, 96)])
    assert [(str(it), it.agrees, it.reason) for it in found] == [
        ("1 × 64 × 64", True, ""), ("3 × 64 × 64", True, ""),
        ("1 × 64 × 96", False, "not square"), ("3 × 64 × 96", False, "not square"),
    ]  # fmt: skip


def test_a_wrong_ending_and_a_missing_file_are_one_line(file, tmp_path):
    for source, target, message in (
        (file, tmp_path / "model.onnx", "a file of torch_export ends in .pt2"),
        (tmp_path / "absent.pth", tmp_path / "model.pt2", "absent.pth cannot be read"),
    ):
        result = export(source, "torch_export", target)
        assert result.returncode == 2 and result.stderr.count("\n") == 1
        assert message in result.stderr and not target.exists()


WITHOUT_ONNX = """
    import sys
    sys.modules.update(dict.fromkeys(("onnx", "onnxscript", "onnxruntime", "onnx_ir")))
    import smt.export.check, smt.export.programs  # which torch.export takes as well
    from smt.cli import main
    main()
"""


def test_without_onnx_its_extra_is_named(file, tmp_path):
    """In a process of its own, which has imported nothing of it before."""
    arguments = ["export", file, "--format", "onnx", "-o", tmp_path / "model.onnx", "--size", SIZE]
    refused = subprocess.run(
        [sys.executable, "-c", textwrap.dedent(WITHOUT_ONNX), *map(str, arguments)],
        capture_output=True, text=True,
    )  # fmt: skip
    assert refused.returncode == 2 and refused.stderr.count("\n") == 1
    assert "pip install 'smt-reproduction[export]'" in refused.stderr


def test_below_64_pixels_the_size_of_images_is_fixed_and_the_batch_free(file, tmp_path):
    target = tmp_path / "model.pt2"
    arguments = ("export", file, "--format", "torch_export", "-o", target)
    result = smt(*arguments)  # at the recipe's 32 pixels
    assert result.returncode == 0, result.stderr
    assert "height × width: 1 × 32 × 32; 3 × 32 × 32\n" in result.stdout
    assert result.stdout.count("\nnot taken: ") == 6
