"""Files of finished runs in MLflow: weights, metrics, provenance and resolved params."""

import hashlib
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager

from smt.errors import UserError
from smt.runs import shared_folder
from smt.runs.atomic import sha256
from smt.tracking.client import RemoteRun, TrackingClient
from smt.tracking.view import RunView

FILES_DIGEST_TAG = "smt.sent.files"
"""Tag of an MLflow run: the digest of the files that were uploaded."""

PARAMS = "params.yaml"


def upload_files(
    client: TrackingClient, views: Sequence[RunView], remote_runs: Mapping[str, RemoteRun]
) -> int:
    """Upload the files of finished runs whose digest is not in MLflow; return the number of runs.

    A run whose weights are not on this machine is skipped. `remote_runs` is by fingerprint.

    Raises:
        UserError: the artifact store does not answer, or has no space left.
    """
    count = 0
    for view in views:
        remote = remote_runs.get(view.fingerprint)
        if remote is None or view.final is None or not all(map(shared_folder.exists, view.outputs)):
            continue
        digest = _digest(view)
        if remote.tags.get(FILES_DIGEST_TAG) == digest:
            continue
        with _upload_errors(view):
            client.log_artifacts(remote.run_id, view.outputs)
            client.log_dict(remote.run_id, view.provenance.params, PARAMS)
        client.log_batch(remote.run_id, tags={FILES_DIGEST_TAG: digest})
        count += 1
    return count


@contextmanager
def _upload_errors(view: RunView) -> Iterator[None]:
    try:
        yield
    except UserError as error:
        raise UserError(
            f"files of {view.run} could not be sent ({error}); all metrics are in MLflow, and are "
            "sent without files by: smt sync --no-files, or SMT_SYNC_FILES=0"
        ) from None


def register_models(
    client: TrackingClient, views: Sequence[RunView], remote_runs: Mapping[str, RemoteRun]
) -> list[str]:
    """Register the weights of finished runs in MLflow's model registry; describe new versions.

    A model is named after scale and experiment. Each run is a version of it.
    """
    versions = []
    for view in views:
        if view.final is None:
            continue
        model = f"{client.family}-{view.run.experiment}"
        tags = {
            "fingerprint": view.fingerprint,
            "seed": str(view.run.seed),
            "weights_sha256": view.final.weights_sha256,
        }
        run_id, weights = remote_runs[view.fingerprint].run_id, view.outputs[0].name
        version = client.register_model(model, run_id, weights, tags)
        if version is not None:
            versions.append(f"{model}, version {version}: {view.run}")
    return versions


def _digest(view: RunView) -> str:
    """Return a digest of the files of a run; for the weights it uses their digest on record."""
    assert view.final is not None
    parts = [view.final.weights_sha256, *(sha256(path) for path in view.outputs[1:])]
    return hashlib.sha256(" ".join(parts).encode()).hexdigest()
