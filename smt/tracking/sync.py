"""Sending runs to MLflow: only what is new, and nothing twice.

Every point has its time from the run's own files, so sending it again changes nothing. Tags of the
MLflow run say how much has been sent; without them everything is sent again, to the same effect. An
MLflow run that is inconsistent with the files is deleted and created again.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from smt.config.load import require_experiments
from smt.config.project import Project
from smt.errors import UserError
from smt.runs import record
from smt.runs.atomic import RESULTS_REMEDY, explained
from smt.runs.paths import Layout
from smt.runs.record import SentRun, SyncReceipt
from smt.tracking import client as mlflow
from smt.tracking.artifacts import FILES_DIGEST_TAG, register_models, upload_files
from smt.tracking.client import Point, RemoteRun, TrackingClient
from smt.tracking.view import RunView, digest, milliseconds, read_views

POINT_COUNT_TAG = "smt.sent.points"
POINTS_DIGEST_TAG = "smt.sent.sha256"
FINAL_DIGEST_TAG = "smt.sent.final"
EVALUATION_DIGEST_TAG = "smt.sent.evaluation"
_SYNC_TAGS = (
    POINT_COUNT_TAG, POINTS_DIGEST_TAG, FINAL_DIGEST_TAG, EVALUATION_DIGEST_TAG, FILES_DIGEST_TAG
)  # fmt: skip
"""Tags that say how much of a run has been sent."""


@dataclass(frozen=True)
class SyncResult:
    """What a sync did."""

    runs: int
    """Runs that MLflow now has as their files have them."""
    updated_runs: int
    """Those of them for which something was sent."""
    points: int
    """Values of metrics sent."""
    recreated_runs: tuple[str, ...]
    """Work folders of runs that were inconsistent in MLflow, and were created again."""
    uploads: int = 0
    """Finished runs whose files were sent."""
    model_versions: tuple[str, ...] = ()
    """New versions in the model registry, described."""


class _RunUpdate(NamedTuple):
    """What was sent of one run."""

    is_update: bool = False
    points: int = 0
    is_recreated: bool = False


def sync(
    project: Project,
    layout: Layout,
    experiments: Sequence[str] = (),
    *,
    files: bool = False,
    register: bool = False,
) -> SyncResult:
    """Update MLflow from the files of these experiments' runs, or of all, and write a receipt.

    Metrics are sent first. With `files`, weights and other files of finished runs follow as
    artifacts. `register` enters the weights in the model registry, and implies `files`.

    Raises:
        UserError: no such experiment, MLflow or its artifact store does not answer, or files of a
            run are damaged; in that case all other runs have been sent.
    """
    require_experiments(project, experiments)
    names = [name for name in project.order if not experiments or name in experiments]
    with mlflow.locked(layout, "smt: waiting for another sync of this results folder"):
        mlflow.prepare(layout, layout.tracking_uri())
        client = TrackingClient.from_layout(layout)
        remote_runs = _by_fingerprint(client)
        views, damages = read_views(project, layout, names)
        updates, errors = _send_all(client, views, remote_runs)
        errors = [*map(str, damages), *errors]
        all_views = read_views(project, layout, project.order)[0] if experiments else views
        _write_receipt(layout, client, remote_runs, all_views)
        uploads = upload_files(client, views, remote_runs) if files or register else 0
        versions = register_models(client, views, remote_runs) if register else []
    if errors:
        others = f" (and {len(errors) - 1} more runs like it)" if errors[1:] else ""
        raise UserError(f"{errors[0]}{others}; all other runs are in MLflow")
    return SyncResult(
        runs=len(updates),
        updated_runs=sum(update.is_update for update in updates.values()),
        points=sum(update.points for update in updates.values()),
        recreated_runs=tuple(name for name, update in updates.items() if update.is_recreated),
        uploads=uploads,
        model_versions=tuple(versions),
    )


def _send_all(
    client: TrackingClient, views: Sequence[RunView], remote_runs: dict[str, RemoteRun]
) -> tuple[dict[str, _RunUpdate], list[str]]:
    """Return what was sent of each work folder, and the errors of those that were not sent."""
    updates: dict[str, _RunUpdate] = {}
    errors: list[str] = []
    for view in views:
        run_sync = _RunSync(client, view, remote_runs)
        if run_sync.is_up_to_date():
            updates[str(view.folder)] = _RunUpdate()
            continue
        try:
            view.check()
        except UserError as error:
            errors.append(str(error))
            continue
        updates[str(view.folder)] = run_sync.send()
    return updates, errors


def _by_fingerprint(client: TrackingClient) -> dict[str, RemoteRun]:
    """Return the MLflow run of each fingerprint.

    Two hosts that sync at once can create a run twice. Both keep the oldest and delete the other.
    """
    remote_runs: dict[str, RemoteRun] = {}
    for run in client.runs():
        fingerprint = run.tags.get("smt.fingerprint")
        if fingerprint is None:
            continue  # a run that a user has logged beside ours
        if fingerprint in remote_runs:
            client.delete_run(run.run_id)
        remote_runs.setdefault(fingerprint, run)
    return remote_runs


class _RunSync:
    """Updates the MLflow run of one work folder from its files."""

    def __init__(
        self, client: TrackingClient, view: RunView, remote_runs: dict[str, RemoteRun]
    ) -> None:
        self.client, self.view, self.remote_runs = client, view, remote_runs
        self.tags = view.tags()
        self.params = view.params()
        self.sections = {
            FINAL_DIGEST_TAG: view.final_points, EVALUATION_DIGEST_TAG: view.evaluation_points
        }  # fmt: skip

    def is_up_to_date(self) -> bool:
        """Return whether there is nothing to send, decided without reading the journal."""
        remote = self.remote_runs.get(self.view.fingerprint)
        return remote is not None and (self._is_complete(remote) or self._has_lost_metrics(remote))

    def send(self) -> _RunUpdate:
        """Send what is new; to a new MLflow run if the present one is inconsistent."""
        remote = self.remote_runs.get(self.view.fingerprint)
        is_inconsistent = remote is not None and self._is_inconsistent(remote)
        if remote is not None and is_inconsistent:
            self.client.delete_run(remote.run_id)
        if remote is None or is_inconsistent:
            remote = self._create_run()
        return self._send_new(remote)._replace(is_recreated=is_inconsistent)

    def _is_complete(self, remote: RemoteRun) -> bool:
        """Return whether MLflow has all of a finished run."""
        return (
            self.view.final is not None
            and remote.status == "FINISHED"
            and {**self.tags, **self._section_tags()}.items() <= remote.tags.items()
        )

    def _has_lost_metrics(self, remote: RemoteRun) -> bool:
        """Return whether MLflow has the finished run, and its `metrics.json` was removed since."""
        return (
            remote.status == "FINISHED"
            and self.view.final is None
            and remote.tags.get("smt.created") == self.tags["smt.created"]
            and remote.tags.get("smt.attempts") == self.tags["smt.attempts"]
        )

    def _is_inconsistent(self, remote: RemoteRun) -> bool:
        """Return whether MLflow has values that are not in the files."""
        points = self.view.points
        sent = int(remote.tags.get(POINT_COUNT_TAG, 0))
        # A resumed run truncates its journal to the checkpoint, and then writes the same lines.
        is_comparable = len(points) >= sent or self.view.final is not None
        differs = remote.tags.get(POINTS_DIGEST_TAG, digest([])) != digest(points[:sent])
        return (
            remote.tags.get("smt.created") != self.tags["smt.created"]
            or any(self.params.get(key) != value for key, value in remote.params.items())
            or (is_comparable and differs)
            or any(remote.tags.get(tag, it) != it for tag, it in self._section_tags().items())
        )

    def _section_tags(self) -> dict[str, str]:
        return {tag: digest(points) for tag, points in self.sections.items() if points}

    def _create_run(self) -> RemoteRun:
        tags = {key: self.tags[key] for key in ("smt.fingerprint", "smt.created")}
        tags["mlflow.note.content"] = self.view.description  # only here: a user may edit it
        start = milliseconds(self.view.created)
        return self.client.create_run(self.view.table, self.view.name, start, tags)

    def _send_new(self, remote: RemoteRun) -> _RunUpdate:
        points = self._new_points(remote)
        params = {
            key: value for key, value in self.params.items() if remote.params.get(key) != value
        }
        tags = {**self.tags, **self._sync_tags(remote)}
        tags = {key: value for key, value in tags.items() if remote.tags.get(key) != value}
        obsolete = [
            key
            for key in remote.tags
            if key.startswith("smt.") and key not in self.tags and key not in _SYNC_TAGS
        ]
        if points or params or tags:
            self.client.log_batch(remote.run_id, points, params, tags)
        for key in obsolete:
            self.client.delete_tag(remote.run_id, key)
        new_status = remote.status != self.view.status
        if new_status:
            self.client.set_status(remote.run_id, self.view.status, self.view.end())
        self.remote_runs[self.view.fingerprint] = replace(remote, status=self.view.status)
        return _RunUpdate(bool(points or params or tags or obsolete or new_status), len(points))

    def _new_points(self, remote: RemoteRun) -> list[Point]:
        points = self.view.points[int(remote.tags.get(POINT_COUNT_TAG, 0)) :]
        for tag, section in self.sections.items():
            if tag not in remote.tags:
                points = points + section
        return points

    def _sync_tags(self, remote: RemoteRun) -> dict[str, str]:
        tags = self._section_tags()
        points = self.view.points
        if len(points) >= int(remote.tags.get(POINT_COUNT_TAG, 0)):
            tags |= {POINT_COUNT_TAG: str(len(points)), POINTS_DIGEST_TAG: digest(points)}
        return tags


def _write_receipt(
    layout: Layout,
    client: TrackingClient,
    remote_runs: dict[str, RemoteRun],
    views: Sequence[RunView],
) -> None:
    sent_runs = [
        SentRun(
            experiment=view.run.experiment,
            seed=view.run.seed,
            fingerprint=view.fingerprint,
            run_id=remote.run_id,
            experiment_id=remote.experiment_id,
            status=remote.status,
        )
        for view in views
        if (remote := remote_runs.get(view.fingerprint)) is not None
    ]
    receipt = SyncReceipt(
        tracking_uri=mlflow.redact_password(client.uri),
        family=client.family,
        experiments=client.experiments(),
        runs=sent_runs,
    )
    with explained(layout.sync_receipt, RESULTS_REMEDY):
        record.write(layout.sync_receipt, receipt)
