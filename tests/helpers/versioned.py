"""A project at smoke scale in git and DVC."""

import contextlib
import json
import shutil
import subprocess

import yaml

from tests.helpers import ROOT
from tests.helpers.project_copy import ProjectCopy

SCALE = "smoke"


class Versioned(ProjectCopy):
    """A copy of the project in git and DVC, whose commands have smoke as their scale.

    Its commands run as forks, and so do the commands that they start, such as Snakemake's jobs.
    `ProjectCopy.start` starts real processes.
    """

    def __init__(self, folder, source=ROOT):
        super().__init__(folder, source)
        for name in (".dvc", ".dvcignore", ".gitignore", "dvc.yaml"):
            with contextlib.suppress(FileNotFoundError):
                if (source / name).is_dir():
                    ignore = shutil.ignore_patterns("tmp", "cache", "config.local")
                    shutil.copytree(source / name, folder / name, ignore=ignore)
                else:
                    shutil.copy2(source / name, folder / name)

    @classmethod
    def at(cls, folder):
        """Return the project that is in a folder already."""
        project = object.__new__(cls)
        project.folder = folder
        return project

    def copied(self, folder):
        """Return a copy with everything; the link to the data is copied as a link."""
        shutil.copytree(self.folder, folder, symlinks=True)
        return Versioned.at(folder)

    def cloned(self, folder):
        """Return a git clone."""
        subprocess.run(["git", "clone", "-q", str(self.folder), str(folder)], check=True)
        return Versioned.at(folder)

    def environment(self, **more):
        site = self.folder.parent / "dvc-site"
        return super().environment(
            **{
                "DVC_SITE_CACHE_DIR": str(site), "DVC_NO_ANALYTICS": "1",
                "SMT_SCALE": SCALE, "SMT_SEND": "0", "SMT_FORKSERVER": "0",
                "GIT_AUTHOR_NAME": "a", "GIT_AUTHOR_EMAIL": "a@b.c",
                "GIT_COMMITTER_NAME": "a", "GIT_COMMITTER_EMAIL": "a@b.c", **more,
            }
        )  # fmt: skip

    def snakemake(self, *arguments, **how):
        return super().snakemake(*arguments, "--config", f"scale={SCALE}", **how)

    def git(self, *arguments):
        done = self.run("git", *arguments)
        assert done.returncode == 0, done.stderr
        return done.stdout

    def dvc(self, *arguments, check=True, **environment):
        done = self.module("dvc", *arguments, **environment)
        assert not check or done.returncode == 0, done.stdout + done.stderr
        return done

    def status(self):
        """Return the changes that `dvc status` lists."""
        return json.loads(self.dvc("status", "--json").stdout)

    def is_left_alone(self):
        """Return whether DVC and Snakemake have nothing to do."""
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
            recipes = content[SCALE]["recipes"]
            recipes.setdefault(recipe, {}).setdefault("optimizer", {}).update(lr=rate)

        self.change("scales.yaml", change)
