"""`smt convert` on small checkpoints, within the process of the test."""

import torch

from tests.helpers import released_files
from tests.helpers.in_process import smt


def save(path, content, **options):
    torch.save(content, path, **options)
    return path


def convert(source, target, *options):
    scale = ("--scale", released_files.SCALE)
    return smt("convert", source, target, "--model", "smt_tiny", *scale, *options)


def taken(done, target, state, *words):
    """Check that the weights came in as `state` has them, and that the output says these words."""
    assert done.returncode == 0, done.stderr
    for word in words:
        assert word in done.stdout, done.stdout
    back = target.with_name("back.pth")
    assert convert(target, back, "--to", "released").returncode == 0
    written = torch.load(back, weights_only=True)["model"]
    assert written.keys() == state.keys()
    assert all(torch.equal(written[name], each) for name, each in state.items())


def refused(done, target, *words):
    """Check that nothing was written, and that one line says why, with these words."""
    assert done.returncode == 2 and "Traceback" not in done.stderr, done.stderr
    (line,) = done.stderr.strip().splitlines()
    assert line.startswith("smt: error: ")
    for word in words:
        assert word in line, line
    assert not target.exists()
