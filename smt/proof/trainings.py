"""The trainings of a proof: `smt train` with results apart from those of the project."""

import json
import shutil
import time
from collections.abc import Collection
from contextlib import closing
from pathlib import Path

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.project import Project
from smt.config.yaml import YamlFile
from smt.errors import EXIT_TRAINING, UserError
from smt.proof.launch import Attempt, Launcher
from smt.runs import heartbeat
from smt.runs.paths import Layout, default_params

CHECKPOINT_STEPS = 10
"""Steps between two checkpoints of a training that is to be killed."""

LOOK = 0.002
"""Seconds between two looks at a training."""


class ProofFailed(UserError):
    """A training that did not end by itself, or ended as something else than it should."""

    exit_code = EXIT_TRAINING


class Trainings:
    """Trains one run several times, each time with results in a folder of its own in `folder`."""

    def __init__(
        self, project: Project, layout: Layout, run: Run, launcher: Launcher, folder: Path
    ) -> None:
        self.run, self.folder = run, folder
        self._project, self._launcher, self._results = project, launcher, layout

    def write_params(self, ranks: int) -> None:
        """Copy params, with a device batch that lets the ranks share a global batch.

        Raises:
            UserError: they cannot share it.
        """
        source, target = default_params(), self.folder / "params"
        shutil.copytree(source, target)
        name = self._project.experiments[self.run.experiment].recipe
        recipe = self._project.recipes[name]
        if (recipe.global_batch // recipe.device_batch) % ranks == 0:
            return
        if recipe.global_batch % ranks:
            raise UserError(
                f"--ranks {ranks}: they cannot share a global batch of {recipe.global_batch}"
            )
        scale = self._results.scale
        scales = dict(YamlFile(source / "scales.yaml").data)
        overlay = scales[scale].setdefault("recipes", {}).setdefault(name, {})
        overlay["device_batch"] = recipe.global_batch // ranks
        (target / "scales.yaml").write_text(json.dumps(scales, indent=1))
        load_project(target, scale)  # a mistake is reported before anything starts

    def layout(self, name: str) -> Layout:
        """Return where the results of one training lie."""
        return Layout(self._results.scale, self.folder / name, self._results.data)

    def logs(self, name: str) -> Path:
        """Return the folder of the logs of one training's attempts."""
        return self.layout(name).results / "logs"

    def work_dirs(self, name: str) -> list[Path]:
        """Return the work folder of one training, once it has one."""
        return list(self.layout(name).run_dir(self.run).glob("work-*"))

    def start(self, name: str, ranks: int, number: int, workers: int | None) -> Attempt:
        """Start the training `name`, or resume it, by its attempt `number`."""
        own = self.layout(name)
        parent = self._project.parent(self.run)
        links = {own.root / "data": self._results.root / "data"}
        if parent is not None:
            links[own.run_dir(parent)] = self._results.run_dir(parent)
        for folder in self.work_dirs(name):
            (folder / heartbeat.PULSE).unlink(missing_ok=True)  # that of an attempt that is over
        for link, target in links.items():
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.is_symlink():
                link.symlink_to(target.resolve())
        arguments = [
            "--params", str(self.folder / "params"), "--results", str(own.results),
            "--data", str(own.data), "train", self.run.experiment, "--seed", str(self.run.seed),
            "--scale", own.scale, "--checkpoint-steps", str(CHECKPOINT_STEPS), "--no-send",
            *(["--workers", str(workers)] if workers is not None else []),
        ]  # fmt: skip
        return self._launcher.start(arguments, ranks, self.logs(name) / f"attempt{number}")

    def train(self, name: str, ranks: int) -> None:
        """Train to the end, undisturbed.

        Raises:
            ProofFailed: the training fails.
        """
        with closing(self.start(name, ranks, 0, None)) as attempt:
            self.require(attempt, ended(attempt), {0}, name)

    def require(
        self,
        attempt: Attempt,
        codes: Collection[int],
        expected: Collection[int],
        name: str,
        *,
        by_signal: bool = False,
    ) -> None:
        """Raise ProofFailed if a rank ended as none should; `by_signal`: any signal is expected."""
        odd = sorted(
            {code for code in codes if code not in expected and not (by_signal and code < 0)}
        )
        if odd:
            valid = [*map(str, sorted(expected)), *(["a signal"] if by_signal else [])]
            raise ProofFailed(
                f"{self.run} on {processes(len(codes))}, {name}: exit code {odd[0]}, valid here: "
                f"{', '.join(valid)}; its last message: "
                f"{attempt.last_message()}; its logs are in {self.folder}"
            )


def ended(attempt: Attempt) -> list[int]:
    """Wait until an attempt has ended; return its exit codes."""
    while (codes := attempt.poll()) is None:
        time.sleep(LOOK)
    return codes


def processes(ranks: int) -> str:
    """Return a number of processes in words."""
    return f"{ranks} process{'es' if ranks > 1 else ''}"
