"""A project in git and DVC, cut down to a few experiments, as its tests use it."""

import contextlib
import json
import shutil

import yaml

from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy
from tests.helpers.shrink import cut_down_digits, keep

TINY, LARGE = "imagenet1k_smt_tiny", "imagenet22k_smt_large"
CHILD, HEADS = "imagenet1k_smt_large_224", "ablation_heads_1"
KEPT = {TINY: [0, 1], LARGE: [0], CHILD: [0], HEADS: [0]}


class Versioned(ProjectCopy):
    """A copy of the project in git and DVC, cut down to a few experiments that take seconds."""

    def __init__(self, folder, source=ROOT):
        super().__init__(folder, source)
        for name in (".dvc", ".dvcignore", ".gitignore", "dvc.yaml"):
            with contextlib.suppress(FileNotFoundError):
                if (source / name).is_dir():
                    leave = shutil.ignore_patterns("tmp", "cache", "config.local")
                    shutil.copytree(source / name, folder / name, ignore=leave)
                else:
                    shutil.copy2(source / name, folder / name)

    def environment(self, **more):
        site = self.folder.parent / "dvc-site"
        return super().environment(
            DVC_SITE_CACHE_DIR=str(site), DVC_NO_ANALYTICS="1", SMT_SEND="0",
            GIT_AUTHOR_NAME="a", GIT_AUTHOR_EMAIL="a@b.c", GIT_COMMITTER_NAME="a",
            GIT_COMMITTER_EMAIL="a@b.c", **more,
        )  # fmt: skip

    def git(self, *arguments):
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dvc(self, *arguments, check=True, **environment):
        done = self.module("dvc", *arguments, **environment)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def status(self):
        """Return what DVC says has changed."""
        return json.loads(self.dvc("status", "--json").stdout)

    def is_left_alone(self):
        """Whether neither DVC nor Snakemake has anything to do."""
        repro = self.dvc("repro")
        assert "Running stage" not in repro.stdout, repro.stdout
        assert self.status() == {}
        done = self.snakemake("-n", "all")
        return "Nothing to be done" in done.stdout + done.stderr

    def record(self):
        done = self.smt("dvc", "record")
        assert done.returncode == 0, done.stdout + done.stderr
        return done.stdout

    def change(self, file, change):
        path = self.folder / "params" / file
        content = yaml.safe_load(path.read_text())
        change(content)
        path.write_text(yaml.safe_dump(content, sort_keys=False))

    def set_rate(self, recipe, rate):
        def change(content):
            content["demo"]["recipes"][recipe].setdefault("optimizer", {}).update(lr=rate)

        self.change("scales.yaml", change)


def cut_down(project):
    def tables(content):
        names = ("imagenet1k", "imagenet22k")
        content["tables"] = {name: content["tables"][name] for name in names}

    def scales(content):
        demo = content["demo"]
        cut_down_digits(demo)
        demo["models"]["smt_tiny"].update(widths=[8, 16, 32, 64], msa_heads=[1, 2, 4, 8])
        demo["models"]["smt_large"].update(widths=[8, 16, 32, 64], depths=[1, 1, 2, 1])
        for recipe in demo["recipes"].values():
            recipe.setdefault("schedule", {}).update(epochs=1, warmup_epochs=0)
        demo["experiments"] = {name: {"seeds": seeds} for name, seeds in KEPT.items()}
        demo["proof"]["runs"] = [{"experiment": TINY, "ranks": 1}]
        content["paper"].pop("experiments", None)

    keep(project.folder / "params", KEPT)
    project.change("tables.yaml", tables)
    project.change("scales.yaml", scales)


def copied(recorded, folder):
    shutil.copytree(recorded.folder, folder, symlinks=True)
    other = object.__new__(Versioned)
    other.folder = folder
    return other


def run_folder(project, experiment=TINY, seed=0):
    return project.folder / "results" / "demo" / "runs" / experiment / f"seed{seed}"
