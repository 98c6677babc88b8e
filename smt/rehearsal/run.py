"""Two steps and a prediction of an experiment at full size, on the fake GPU.

Batches are the largest that a training can come upon, for a peak that no batch exceeds.
"""

import re
import tempfile
import time
from pathlib import Path
from typing import Any

from smt.config.project import Project
from smt.engine.distributed import Ranks
from smt.engine.preempt import StopRequest
from smt.engine.progress import Progress
from smt.engine.trainer import Settings, Trainer
from smt.errors import first_line
from smt.rehearsal.fake_gpu import GPU, move_to_gpu
from smt.rehearsal.traffic import watched
from smt.rehearsal.watch import Watch, package_line
from smt.runs.rehearsals import Rehearsal
from smt.tasks.synthetic import Synthetic

STEPS = 2
"""The first makes what the optimizer keeps; the second is what all others are like."""


class _OnFakeGpu(Synthetic):
    """The task of an experiment whose network was built for real, and is moved afterwards."""

    def _move(self) -> None:
        """Leave it where it is: it is built before tensors are fake ones."""


def rehearse(project: Project, experiment: str, **changes: Any) -> Rehearsal:
    """Return what two steps and a prediction of an experiment come to on a GPU.

    Args:
        project: Params, usually at the scale of the paper.
        experiment: A name of them.
        changes: Keys of its recipe and what they are here; `images` and `size` as of `Synthetic`.

    Raises:
        UserError: there is a real GPU, or torch is of a version that this does not know.
    """
    started = time.monotonic()
    task = _OnFakeGpu(project, experiment, GPU, largest=True, **changes)
    result = Rehearsal(
        experiment=experiment,
        precision=task.recipe.precision,
        images=task.images,
        size=task.canvas,
        recompute=task.recipe.recompute,
    )
    try:
        with watched() as watch:
            move_to_gpu(task.model)
            result = _train(task, watch, result)
            watch.reset()
            task.predict()
            result = result.model_copy(update=_of_prediction(watch))
    except (RuntimeError, NotImplementedError, AssertionError, TypeError, ValueError) as error:
        result = result.model_copy(update={"failure": _explained(error)})
    return result.model_copy(update={"seconds": round(time.monotonic() - started, 1)})


def _train(task: _OnFakeGpu, watch: Watch, result: Rehearsal) -> Rehearsal:
    """Return `result` with what the last of some steps comes to."""
    ranks, settings = Ranks(0, 1, GPU), Settings(log_every=50, checkpoint_seconds=1e9)
    progress = Progress(result.experiment, epochs=1, epoch_images=1, ranks=ranks)
    with tempfile.TemporaryDirectory() as folder:
        trainer = Trainer(
            task, Path(folder), seed=0, ranks=ranks, settings=settings, stop=StopRequest()
        )
        batches = task.micro_batches()
        for _ in range(STEPS):
            watch.reset()
            trainer.step(batches, progress)
    done = {
        "training_bytes": watch.peak,
        "training_at": watch.peak_at,
        "waits": {
            f"{what} at {where}": count
            for (what, where), count in watch.waits.most_common()
            if not where.startswith("smt/tasks/synthetic.py")  # a loader's batches are pinned
        },
        "kernels": watch.kernels.total(),
        "casts": watch.casts,
        "traffic_bytes": watch.traffic,
        "without_gradient": [
            name
            for name, parameter in task.model.named_parameters()
            if parameter.requires_grad and parameter not in trainer.state.optimizer.state
        ],
    }
    return result.model_copy(update=done)


def _of_prediction(watch: Watch) -> dict[str, int]:
    return {
        "prediction_bytes": watch.peak,
        "prediction_kernels": watch.kernels.total(),
        "prediction_traffic_bytes": watch.traffic,
    }


def _explained(error: Exception) -> str:
    """Return an error's first line, and the last place in this package that it came through."""
    where, trace = "", error.__traceback__
    while trace is not None:
        line = package_line(trace.tb_frame.f_code.co_filename, trace.tb_lineno)
        where = f" ({line})" if line else where
        trace = trace.tb_next
    return _plain(first_line(error)) + where


def _plain(message: str) -> str:
    """Return what torch says of a real tensor among fake ones in words of what is wrong."""
    real = re.search(r"convert all Tensors to FakeTensors.* Found in ([\w.]+)", message)
    if real is None:
        return message
    return (
        f"{real[1]} has a tensor of the GPU and one of the CPU, which is neither parameter nor "
        "buffer of a module and was not moved"
    )
