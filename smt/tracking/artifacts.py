"""The files of a finished run in MLflow: its weights, numbers, provenance and resolved params."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from smt.errors import UserError
from smt.runs.atomic import sha256
from smt.tracking.client import RemoteRun, Server
from smt.tracking.view import RunView

SENT_FILES = "smt.sent.files"
"""Tag of MLflow's run: which files were sent."""

PARAMS = "params.yaml"


def send_files(server: Server, found: Sequence[RunView], known: Mapping[str, RemoteRun]) -> int:
    """Send the files of every finished run that MLflow has not got; return of how many runs.

    A run whose weights are not on this machine keeps what MLflow has.

    Raises:
        UserError: the store of artifacts does not answer, or has no room.
    """
    count = 0
    for view in found:
        remote = known.get(view.fingerprint)
        if remote is None or view.final is None or not all(f.exists() for f in view.outputs):
            continue
        wanted = _digest(view)
        if remote.tags.get(SENT_FILES) == wanted:
            continue
        with _explained(view):
            server.send_files(remote.run_id, view.outputs)
            server.send_params(remote.run_id, PARAMS, view.provenance.params)
        server.send(remote.run_id, tags={SENT_FILES: wanted})
        count += 1
    return count


@contextmanager
def _explained(view: RunView) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(
            f"files of {view.run} could not be sent ({error}); all numbers are there, and can be "
            "alone: smt sync --no-files, or SMT_SYNC_FILES=0"
        ) from None


def register(server: Server, found: Sequence[RunView], known: Mapping[str, RemoteRun]) -> list[str]:
    """Enter the weights of every finished run in MLflow's model registry; return what is new.

    A model is named after scale and experiment; each of its versions is a run's.
    """
    made = []
    for view in found:
        if view.final is None:
            continue
        model = f"{server.family}-{view.run.experiment}"
        tags = {
            "fingerprint": view.fingerprint,
            "seed": str(view.run.seed),
            "weights_sha256": view.final.weights_sha256,
        }
        weights = view.outputs[0].name
        version = server.register(model, known[view.fingerprint].run_id, weights, tags)
        if version is not None:
            made.append(f"{model}, version {version}: {view.run}")
    return made


def _digest(view: RunView) -> str:
    """Return what changes when one of the files does; the weights' own digest stands for them."""
    assert view.final is not None
    parts = [view.final.weights_sha256, *(sha256(path) for path in view.outputs[1:])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
