"""The proof of one run: trained once undisturbed, once killed again and again, then compared."""

import json
import logging
import math
import shutil
import socket
import time
from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from smt.config.experiments import Run
from smt.config.load import load_project
from smt.config.project import Project
from smt.config.yaml import YamlFile
from smt.errors import EXIT_RESUME, EXIT_TRAINING, UserError
from smt.proof import plan
from smt.proof.launch import Attempt, Launcher
from smt.proof.plan import Kill
from smt.proof.record import ProofRecord
from smt.runs import heartbeat, journal, provenance, record
from smt.runs.atomic import sha256
from smt.runs.checkpoint_files import FOLDER
from smt.runs.paths import Layout, default_params
from smt.runs.record import RunMetrics

log = logging.getLogger(__name__)

CHECKPOINT_STEPS = 10
"""Steps between two checkpoints of a training that is to be killed."""

_LOOK = 0.002
"""Seconds between two looks at a training."""

_PATIENCE = 30.0
"""Seconds to wait for a checkpoint or a data worker to be there to be hit."""


class ProofFailed(UserError):
    """A training that did not end by itself, or ended as something else than it should."""

    exit_code = EXIT_TRAINING


@dataclass(frozen=True)
class KillResult:
    """The result of one kill."""

    kill: Kill
    at_step: int
    """Global steps done when it was sent."""
    codes: list[int]
    """Exit code of each rank; empty where the training went on."""


class Proof:
    """Proves one run on a number of ranks, and writes the record of it."""

    def __init__(
        self, project: Project, layout: Layout, run: Run, launcher: Launcher, *, ranks: int,
        kills: int, draw: int,
    ) -> None:  # fmt: skip
        self.project, self.layout, self.run = project, layout, run
        self.launcher, self.ranks, self.kills, self.draw = launcher, ranks, kills, draw
        self.title = f"{run} on {ranks} process{'es' if ranks > 1 else ''}"
        self.path = layout.proof_record(run, ranks)
        self.folder = self.path.with_suffix("")

    def prove(self) -> ProofRecord:
        """Train, kill, compare; return the record, which is written to `path` as well.

        Raises:
            ProofFailed: a training failed instead of ending or going on; the message names its log.
            UserError: more kills than steps, or ranks that cannot share a global batch.
        """
        started = time.monotonic()
        shutil.rmtree(self.folder, ignore_errors=True)
        self.path.unlink(missing_ok=True)
        self._write_params()
        log.info("%s: undisturbed", self.title)
        self._train("undisturbed", self.ranks)
        undisturbed = self._outcome("undisturbed")
        kills = plan.draw(
            str(self.run), self.draw, steps=undisturbed.steps, ranks=self.ranks,
            kills=self.kills,
        )  # fmt: skip
        results = list(self._interrupt(kills, undisturbed))
        outcome = {**self._compare(undisturbed, results), "kills_drawn": len(kills)}
        if self.ranks > 1:
            log.info("%s: undisturbed on 1 process, for comparison", self.run)
            self._train("alone", 1)
            outcome["one_rank"] = self._deviation()
        proof = ProofRecord(**outcome, seconds=round(time.monotonic() - started, 1))
        record.write(self.path, proof)
        return proof

    # --- trainings ------------------------------------------------------------------------------

    def _write_params(self) -> None:
        """Copy params, with a device batch that lets the ranks share a global batch."""
        source, target = default_params(), self.folder / "params"
        shutil.copytree(source, target)
        name = self.project.experiments[self.run.experiment].recipe
        recipe = self.project.recipes[name]
        if (recipe.global_batch // recipe.device_batch) % self.ranks == 0:
            return
        if recipe.global_batch % self.ranks:
            raise UserError(
                f"--ranks {self.ranks}: they cannot share a global batch of {recipe.global_batch}"
            )
        scales = dict(YamlFile(source / "scales.yaml").data)
        overlay = scales[self.layout.scale].setdefault("recipes", {}).setdefault(name, {})
        overlay["device_batch"] = recipe.global_batch // self.ranks
        (target / "scales.yaml").write_text(json.dumps(scales, indent=1))
        load_project(target, self.layout.scale)  # a mistake is reported before anything starts

    def _layout(self, name: str) -> Layout:
        return Layout(self.layout.scale, self.folder / name, self.layout.data)

    def _start(self, name: str, ranks: int, number: int, workers: int | None) -> Attempt:
        """Start or go on with a training whose results lie apart, in the folder `name`."""
        own = self._layout(name)
        parent = self.project.parent(self.run)
        links = {own.root / "data": self.layout.root / "data"}
        if parent is not None:
            links[own.run_dir(parent)] = self.layout.run_dir(parent)
        for folder in self._work_dirs(name):
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
        return self.launcher.start(arguments, ranks, own.results / "logs" / f"attempt{number}")

    def _train(self, name: str, ranks: int) -> None:
        with closing(self._start(name, ranks, 0, None)) as attempt:
            self._require(attempt, _ended(attempt), {0}, name)

    def _interrupt(self, kills: list[Kill], undisturbed: RunMetrics) -> Iterator[KillResult]:
        """Train with all kills on the way, to the end; yield the result of each."""
        number = 0
        step_seconds = undisturbed.wall_seconds / undisturbed.steps
        latest = [*(kill.step for kill in kills[1:]), undisturbed.steps - 1]
        attempt: Attempt | None = self._start("interrupted", self.ranks, 0, kills[0].workers)
        try:
            for drawn, before in zip(kills, latest, strict=True):
                if attempt is None:
                    number += 1
                    attempt = self._start("interrupted", self.ranks, number, drawn.workers)
                sent = self._send(attempt, drawn, step_seconds, before)
                if sent is None:
                    log.info("%s: no time was left for %s", self.title, drawn)
                    continue
                kill, step = sent
                codes = _ended(attempt) if kill.ends else []
                self._require(attempt, codes, _expected(kill), f"attempt {number}")
                log.info("%s: %s at step %d", self.title, kill, step)
                yield KillResult(kill, step, codes)
                if kill.ends:
                    attempt = None
            if attempt is None:
                attempt = self._start("interrupted", self.ranks, number + 1, None)
            self._require(attempt, _ended(attempt), {0}, "the last attempt")
        finally:
            if attempt is not None:
                attempt.close()

    def _send(
        self, attempt: Attempt, kill: Kill, step_seconds: float, latest: int
    ) -> tuple[Kill, int] | None:
        """Wait for the moment of a kill, send it, and return it with the steps done by then.

        One that waits for a checkpoint waits no longer than to step `latest`, where the next kill
        is due: from then on it is one between checkpoints. None if the training has ended before.
        """
        while self._step() < kill.step:
            if attempt.poll() is not None:
                return None
            time.sleep(_LOOK)
        time.sleep(kill.delay * step_seconds)
        deadline = time.monotonic() + _PATIENCE
        while attempt.poll() is None and time.monotonic() < deadline:
            step = self._step()
            if kill.moment == "checkpoint" and step >= latest and not self._is_saving():
                kill = replace(kill, moment="step")
            if kill.target == "data worker":
                if attempt.kill_worker(kill.rank):
                    return kill, step
            elif kill.moment == "step" or self._is_saving():
                attempt.kill(kill.signal, kill.rank if kill.target == "one rank" else None)
                return kill, step
            time.sleep(_LOOK / 4)
        return None

    def _step(self) -> int:
        beats = (heartbeat.read(folder) for folder in self._work_dirs("interrupted"))
        return max((beat.step for beat in beats if beat is not None), default=0)

    def _is_saving(self) -> bool:
        folders = self._work_dirs("interrupted")
        return any(any((folder / FOLDER).glob(".step-*.tmp")) for folder in folders)

    def _work_dirs(self, name: str) -> list[Path]:
        return list(self._layout(name).run_dir(self.run).glob("work-*"))

    def _require(self, attempt: Attempt, codes: list[int], expected: set[int], name: str) -> None:
        """Raise ProofFailed if a rank ended as none should."""
        odd = sorted({code for code in codes if code not in expected})
        if odd:
            raise ProofFailed(
                f"{self.title}, {name}: exit code {odd[0]}, valid here: "
                f"{', '.join(map(str, sorted(expected)))}; its last message: "
                f"{attempt.last_message()}; its logs are in {self.folder}"
            )

    # --- comparison -----------------------------------------------------------------------------

    def _outcome(self, name: str) -> RunMetrics:
        final = record.read_metrics(self._layout(name), self.run)
        assert final is not None  # the training has ended with exit code 0
        return final

    def _journal(self, name: str) -> bytes:
        (folder,) = self._work_dirs(name)
        return (folder / journal.JOURNAL).read_bytes()

    def _compare(self, undisturbed: RunMetrics, results: list[KillResult]) -> dict[str, Any]:
        interrupted = self._outcome("interrupted")
        (folder,) = self._work_dirs("interrupted")
        known = provenance.require(folder)
        resumed = [attempt.resumed_at_step for attempt in known.attempts]
        weights = [
            sha256(self._layout(name).weights(self.run)) for name in ("undisturbed", "interrupted")
        ]
        journals = [self._journal(name) for name in ("undisturbed", "interrupted")]
        kills = _kill_records(results, resumed)
        equal_numbers = undisturbed.metrics == interrupted.metrics
        return {
            "experiment": self.run.experiment,
            "seed": self.run.seed,
            "scale": self.layout.scale,
            "ranks": self.ranks,
            **self.launcher.facts,
            "fingerprint": undisturbed.fingerprint,
            "commit": known.git.commit,
            "host": socket.gethostname(),
            "steps": undisturbed.steps,
            "drawn_from": self.draw,
            "kills": kills,
            "resumed_at": resumed[1:],
            "weights_sha256": weights,
            "weights_equal": weights[0] == weights[1] and equal_numbers,
            "journal_equal": journals[0] == journals[1],
            "first_difference": _first_difference(*journals),
            # Told to stop, a training must save what it has done: no step is taken twice.
            "steps_lost_when_told": sum(k["repeated"] for k in kills if k["saves"]),
            "most_steps_repeated": max((each["repeated"] for each in kills), default=0),
        }

    def _deviation(self) -> dict[str, Any]:
        """Return how far the result on several ranks is from that on one."""
        from safetensors.torch import load_file

        many, one = self._outcome("undisturbed"), self._outcome("alone")
        first, second = (
            load_file(self._layout(name).weights(self.run)) for name in ("undisturbed", "alone")
        )
        names = [name for name, value in first.items() if value.is_floating_point()]
        distance = sum(
            float((first[n].double() - second[n].double()).square().sum()) for n in names
        )
        norm = sum(float(second[name].double().square().sum()) for name in names)
        losses = [
            line["metrics"]["train/loss"]
            for line in (
                json.loads(self._journal(n).splitlines()[0]) for n in ("undisturbed", "alone")
            )
        ]
        return {
            "steps": [many.steps, one.steps],
            "images": [many.images, one.images],
            "first_loss": losses,
            "weights_relative_l2": math.sqrt(distance / norm),
            "metrics": [many.metrics, one.metrics],
        }


def _expected(kill: Kill) -> set[int]:
    """Return the exit codes that a kill may give; a training that has just ended gives 0."""
    if kill.saves:
        return {0, EXIT_RESUME}
    # A rank that lost another one ends as one that can go on.
    return {0, -kill.signal, EXIT_RESUME} if kill.target == "one rank" else {0, -kill.signal}


def _ended(attempt: Attempt) -> list[int]:
    while (codes := attempt.poll()) is None:
        time.sleep(_LOOK)
    return codes


def _kill_records(results: list[KillResult], resumed: list[int]) -> list[dict[str, Any]]:
    """Return each kill with the step that the training went on from, and the steps done twice."""
    after = iter(resumed[1:])
    records = []
    for result in results:
        went_on = next(after, None) if result.kill.ends else result.at_step
        records.append(
            {
                "kill": str(result.kill),
                "signal": result.kill.signal.name,
                "saves": result.kill.saves,
                "ends": result.kill.ends,
                "workers": result.kill.workers,
                "at_step": result.at_step,
                "resumed_at": went_on,
                "repeated": max(0, result.at_step - went_on) if went_on is not None else 0,
                "exit_codes": result.codes,
            }
        )
    return records


def _first_difference(one: bytes, other: bytes) -> str | None:
    """Return the first line of the journals that differs, or None."""
    if one == other:
        return None
    lines = zip(one.splitlines(), other.splitlines(), strict=False)
    for number, (first, second) in enumerate(lines, 1):
        if first != second:
            return f"line {number}: {first.decode()} and {second.decode()}"
    counts = [len(each.splitlines()) for each in (one, other)]
    return f"one has {counts[0]} lines, the other {counts[1]}"
