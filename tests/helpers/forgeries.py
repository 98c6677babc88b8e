"""Forged runs: one stretch of a training is not what it says, and all records agree with it."""

import hashlib
import json

import torch
from safetensors.torch import load_file, save_file

from smt.config.load import load_project
from smt.engine import checkpoint
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.replay import subject
from smt.replay.stretch import Replayer
from smt.runs.checkpoint_files import CheckpointName, checkpoints
from smt.runs.journal import JOURNAL
from smt.runs.paths import Layout
from tests.helpers.trainings import RUN_OF_DEMO, run_dir, smt, work_dir

CPU = Ranks(0, 1, torch.device("cpu"))


def find(project, change=lambda loaded: loaded):
    """Return the subject of an audit of a project's run; `change` is applied to its params."""
    loaded = load_project(project / "params", "demo")
    layout = Layout("demo", project / "results", project / "data")
    run = next(run for run in loaded.runs if run.experiment == RUN_OF_DEMO)
    found = subject.find(loaded, layout, run)
    return subject.Subject(change(loaded), layout, run, found.final, found.provenance)


def with_weights_edited(project, stretch):
    """Edit a weight at the end of a stretch, and let the training itself go on from there."""
    path = cut(project, stretch)
    tensors = load_file(path)
    name = next(name for name in sorted(tensors) if name.startswith("model.head"))
    tensors[name] += 0.25
    facts = checkpoint.facts_of(path)
    path.unlink()
    rewrite(project, tensors, facts)
    finish(project)
    return name


def with_another_rate(project, stretch):
    """Train a stretch with twice the learning rate, and go on with the right one."""
    found = find(project, twice_the_rate)
    one = found.stretches[stretch - 1]
    replayer = Replayer(found, CPU, StopRequest(), 0)
    replayer._prepare(one)
    replayer._train(one)
    trained = checkpoints(replayer.folder)[0]
    content = trained.read_bytes()
    cut(project, stretch).unlink()
    (work_dir(project) / "checkpoints" / trained.name).write_bytes(content)
    (work_dir(project) / JOURNAL).write_bytes((replayer.folder / JOURNAL).read_bytes())
    finish(project)


def replace_checkpoint(project, path):
    """Replace a checkpoint by one with another tensor, under the name that its bytes give it."""
    tensors, facts = load_file(path), checkpoint.facts_of(path)
    tensors[min(tensors)] += 1
    path.unlink()
    write(project, checkpoint.Checkpoint(facts.pop("step"), facts.pop("epochs"), tensors, facts))


def twice_the_rate(loaded):
    recipes = dict(loaded.recipes)
    optimizer = recipes["imagenet1k"].optimizer
    doubled = optimizer.model_copy(update={"lr": 2 * optimizer.lr})
    recipes["imagenet1k"] = recipes["imagenet1k"].model_copy(update={"optimizer": doubled})
    return loaded.model_copy(update={"recipes": recipes})


def cut(project, stretch):
    """Cut a run back to the end of a stretch, as if it had been killed; return its checkpoint."""
    end = find(project).stretches[stretch - 1].end
    (run_dir(project) / "metrics.json").unlink()
    (run_dir(project) / "model.safetensors").unlink()
    log = work_dir(project) / JOURNAL
    log.write_bytes(log.read_bytes()[: end.end])
    newest = None
    for path in checkpoints(work_dir(project)):
        name = CheckpointName.of(path)
        if (name.step, name.epochs) > (end.step, end.epochs):
            path.unlink()
        elif newest is None:
            newest = path
    return newest


def rewrite(project, tensors, facts):
    """Write a checkpoint as the newest, and give the last line of the journal its digest."""
    log = work_dir(project) / JOURNAL
    step, epochs = facts.pop("step"), facts.pop("epochs")
    state = checkpoint.Checkpoint(step, epochs, tensors, facts)
    *before, last = log.read_bytes().splitlines(keepends=True)
    line = json.loads(last)
    line["milestone"]["state"] = state.digest()
    content = b"".join([*before, (json.dumps(line, separators=(",", ":")) + "\n").encode()])
    log.write_bytes(content)
    facts["journal"] |= {"bytes": len(content), "sha256": hashlib.sha256(content).hexdigest()}
    write(project, state)


def write(project, state):
    """Write a checkpoint under the name that its bytes give it."""
    folder = work_dir(project) / "checkpoints"
    draft = folder / "draft"
    save_file(dict(state.tensors), draft, {"facts": json.dumps(state.all_facts)})
    digest = hashlib.sha256(draft.read_bytes()).hexdigest()
    draft.rename(folder / str(CheckpointName(state.step, state.epochs, digest)))


def finish(project):
    """Train to the end: the forger's records are written by the training itself."""
    smt(project, "train", RUN_OF_DEMO)
