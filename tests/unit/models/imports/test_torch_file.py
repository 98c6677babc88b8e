"""Files that are not what their name says, or that want code of others: one line each."""

import argparse
import gzip
import zipfile
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch

from smt.models import weights
from tests.helpers.conversions import convert, refused, save, taken
from tests.helpers.in_process import smt


def test_the_content_of_a_file_counts_not_its_name(tmp_path, state, target):
    source = tmp_path / "in.pth"
    safetensors.torch.save_file(state, source)
    taken(convert(source, target), target, state, "a file of safetensors, whatever its name")
    assert "kind         released checkpoint" in smt("checkpoint", source).stdout
    source = save(tmp_path / "in.safetensors", {"model": state})
    taken(convert(source, target), target, state, "a file of torch.save, whatever its name")
    assert "a file of torch.save, whatever" in smt("checkpoint", source).stdout


POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0a\nsize 92345678\n"


@pytest.mark.parametrize("name", ["in.pth", "in.safetensors"])
@pytest.mark.parametrize(
    "content, words",
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
def test_what_is_no_checkpoint_is_called_what_it_is(tmp_path, target, name, content, words):
    source = tmp_path / name
    source.write_bytes(content)
    refused(convert(source, target), target, str(source), words)
    back = tmp_path / "back.pth"
    refused(convert(source, back, "--to", "released"), back, str(source), words)
    done = smt("checkpoint", source)
    assert done.returncode in (2, 3) and words in done.stdout + done.stderr
    assert len((done.stdout + done.stderr).strip().splitlines()) <= 2


@pytest.mark.filterwarnings("ignore:.*torch.jit:FutureWarning")
def test_archives_and_programs_are_called_what_they_are(tmp_path, target):
    source = tmp_path / "in.pth"
    with zipfile.ZipFile(source, "w") as file:
        file.writestr("smt_tiny.pth", b"weights")
    refused(convert(source, target), target, "a zip archive, not of torch.save", "smt_tiny.pth")
    torch.jit.trace(torch.nn.Linear(2, 2), torch.ones(1, 2)).save(source)
    refused(convert(source, target), target, "a program of TorchScript", "state_dict()")


def test_a_download_that_was_cut_off_is_named(tmp_path, state, target):
    source = save(tmp_path / "in.pth", {"model": state})
    source.write_bytes(source.read_bytes()[:-1000])
    refused(convert(source, target), target, "cut off or damaged", "copy or download it again")
    source = tmp_path / "in.safetensors"
    safetensors.torch.save_file(state, source)
    source.write_bytes(source.read_bytes()[:-1000])
    refused(convert(source, target), target, "not a whole safetensors file")


class Layer(torch.nn.Module):
    """Some network of somebody's."""

    def __init__(self):
        super().__init__()
        self.linear = torch.nn.Linear(2, 2)


class Settings:
    """Some class of somebody's."""


@pytest.mark.parametrize("zipped", [True, False])
@pytest.mark.parametrize(
    "content, words",
    [
        (Layer(), ("torch.save({'model': model.state_dict()}",)),
        ({"model": {"norm1.bias": torch.ones(1)}, "cfg": Settings()}, ("Settings", "could run")),
    ],
    ids=["model", "class"],
)
def test_files_that_need_code_of_others_are_refused(tmp_path, target, content, words, zipped):
    source = save(tmp_path / "in.pth", content, _use_new_zipfile_serialization=zipped)
    if isinstance(content, Layer) and zipped:
        words = ("a whole pickled model", "Layer", *words)
    elif isinstance(content, Layer):
        words = ("Layer", "could run as code")  # of the old format only the first class is known
    refused(convert(source, target), target, str(source), *words)
    done = smt("checkpoint", source)
    assert done.returncode == 2 and words[0] in done.stderr


def test_plain_objects_that_people_save_are_read_without_their_code(tmp_path, state, target):
    source = save(
        tmp_path / "in.pth",
        {
            "model": state, "best": np.float64(82.25), "epoch": np.int64(7), "big": np.float32(0.5),
            "flag": np.bool_(True), "folder": Path("/runs/a"), "args": argparse.Namespace(lr=0.1),
        },
    )  # fmt: skip
    taken(convert(source, target), target, state)
    assert weights.metadata(target)["source"] == {
        "recorded": {"best": 82.25, "epoch": 7, "big": 0.5, "flag": True, "folder": "/runs/a"},
        "config": {"lr": 0.1},
    }


def test_a_folder_is_no_checkpoint(tmp_path, target):
    refused(convert(tmp_path, target), target, str(tmp_path), "cannot be read")


def test_a_target_has_the_ending_of_what_is_written(tmp_path, state):
    source = save(tmp_path / "in.pth", {"model": state})
    refused(convert(source, tmp_path / "out.pth"), tmp_path / "out.pth", ".safetensors")
    out = tmp_path / "out.safetensors"
    refused(convert(source, out, "--to", "released"), out, ".pth")
    safetensors.torch.save_file(state, out)
    before = out.read_bytes()
    done = convert(out, out)
    assert done.returncode == 2 and "is SOURCE itself" in done.stderr
    assert out.read_bytes() == before


def test_weights_in_the_released_naming_do_not_go_out_again(tmp_path, state):
    source, back = tmp_path / "in.safetensors", tmp_path / "back.pth"
    safetensors.torch.save_file(state, source)
    refused(convert(source, back, "--to", "released"), back, "brought in by --to ours")


def test_the_old_format_of_torch_comes_in(tmp_path, state, target):
    source = save(tmp_path / "in.pth", {"model": state}, _use_new_zipfile_serialization=False)
    taken(convert(source, target), target, state)
