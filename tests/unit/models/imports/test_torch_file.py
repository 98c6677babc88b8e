"""Files of other formats than their name has, or with pickled foreign classes: one line each."""

import argparse
import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from smt.models import weights
from tests.helpers.conversions import assert_imported, assert_refused, convert, save
from tests.helpers.in_process import smt


def test_the_format_is_recognised_by_content_not_by_name(tmp_path, state, target):
    source = tmp_path / "in.pth"
    safetensors.torch.save_file(state, source)
    assert_imported(
        convert(source, target), target, state, "a file of safetensors, whatever its name"
    )
    assert "kind         released checkpoint" in smt("checkpoint", source).stdout
    source = save(tmp_path / "in.safetensors", {"model": state})
    assert_imported(
        convert(source, target), target, state, "a file of torch.save, whatever its name"
    )
    assert "a file of torch.save, whatever" in smt("checkpoint", source).stdout


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 92345678\n"


@pytest.mark.parametrize("name", ["in.pth", "in.safetensors"])
@pytest.mark.parametrize(
    "content, expected",
    [
        (POINTER, "a Git LFS pointer to a file of 92,345,678 bytes"),
        (b"<!DOCTYPE html>\n<html><body>Sign in</body></html>", "a web page (HTML)"),
        (b"\xef\xbb\xbf\n <html lang='en'>", "a web page (HTML)"),
        (b"Not Found", "a text file that begins 'Not Found'"),
        ("{'message': 'größer'}\n".encode() * 99, "a text file that begins"),
        (b"", "is empty"),
        (gzip.compress(b"weights"), "a gzip archive: unpack it first"),
        (b"\x89HDF\r\n\x1a\n" + bytes(99), "an HDF5 file"),
    ],
    ids=["LFS", "page", "page with a mark", "not found", "log", "empty", "gzip", "HDF5"],
)
def test_a_file_of_another_format_is_named_by_its_format(tmp_path, target, name, content, expected):
    source = tmp_path / name
    source.write_bytes(content)
    assert_refused(convert(source, target), target, str(source), expected)
    back = tmp_path / "back.pth"
    assert_refused(convert(source, back, "--to", "released"), back, str(source), expected)
    result = smt("checkpoint", source)
    assert result.returncode in (2, 3) and expected in result.stdout + result.stderr
    assert len((result.stdout + result.stderr).strip().splitlines()) <= 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_archives_and_torchscript_are_named_by_their_format(tmp_path, target):
    source = tmp_path / "in.pth"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("smt_tiny.pth", b"weights")
    assert_refused(
        convert(source, target), target, "a zip archive, not of torch.save", "smt_tiny.pth"
    )
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(source)
    assert_refused(convert(source, target), target, "a program of TorchScript", "state_dict()")


def test_a_truncated_download_is_named(tmp_path, state, target):
    source = save(tmp_path / "in.pth", {"model": state})
    source.write_bytes(source.read_bytes()[:-1000])
    assert_refused(
        convert(source, target), target, "cut off or damaged", "copy or download it again"
    )
    source = tmp_path / "in.safetensors"
    safetensors.torch.save_file(state, source)
    source.write_bytes(source.read_bytes()[:-1000])
    assert_refused(convert(source, target), target, "not a whole safetensors file")


class Layer(torch.nn.Module):
    """A foreign network."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)


class Settings:
    """A foreign class."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content, expected",
    [
        (Layer(), ("torch.save({'model': model.state_dict()}",)),
        ({"model": {"norm1.bias": torch.ones(1)}, "cfg": Settings()}, ("Settings", "could run")),
    ],
    ids=["model", "class"],
)
def test_pickles_of_foreign_classes_are_refused(tmp_path, target, content, expected, zipped):
    source = save(tmp_path / "in.pth", content, _use_new_zipfile_serialization=zipped)
    if isinstance(content, Layer) and zipped:
        expected = ("a whole pickled model", "Layer", *expected)
    elif isinstance(content, Layer):
        expected = ("Layer", "could run as code")  # of the old format only the first class is known
    assert_refused(convert(source, target), target, str(source), *expected)
    result = smt("checkpoint", source)
    assert result.returncode == 2 and expected[0] in result.stderr


def test_usual_metadata_is_read_without_running_code(tmp_path, state, target):
    source = save(
        tmp_path / "in.pth",
        {
            "model": state, "best": np.float64(82.25), "epoch": np.int64(7), "big": np.float32(0.5),
            "flag": np.bool_(True), "folder": Path("/runs/a"), "args": argparse.Namespace(lr=0.1),
        },
    )  # fmt: skip
    assert_imported(convert(source, target), target, state)
    assert weights.metadata(target)["source"] == {
        "recorded": {"best": 82.25, "epoch": 7, "big": 0.5, "flag": True, "folder": "/runs/a"},
        "config": {"lr": 0.1},
    }


def test_a_folder_is_no_checkpoint(tmp_path, target):
    assert_refused(convert(tmp_path, target), target, str(tmp_path), "cannot be read")


def test_the_target_needs_the_suffix_of_its_format(tmp_path, state):
    source = save(tmp_path / "in.pth", {"model": state})
    assert_refused(convert(source, tmp_path / "out.pth"), tmp_path / "out.pth", ".safetensors")
    out = tmp_path / "out.safetensors"
    assert_refused(convert(source, out, "--to", "released"), out, ".pth")
    safetensors.torch.save_file(state, out)
    before = out.read_bytes()
    result = convert(out, out)
    assert result.returncode == 2 and "is SOURCE itself" in result.stderr
    assert out.read_bytes() == before


def test_weights_in_the_released_naming_are_not_exported_again(tmp_path, state):
    source, back = tmp_path / "in.safetensors", tmp_path / "back.pth"
    safetensors.torch.save_file(state, source)
    assert_refused(convert(source, back, "--to", "released"), back, "brought in by --to ours")


def test_the_old_format_of_torch_is_imported(tmp_path, state, target):
    source = save(tmp_path / "in.pth", {"model": state}, _use_new_zipfile_serialization=False)
    assert_imported(convert(source, target), target, state)
