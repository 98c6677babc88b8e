"""Sending runs to MLflow: only what is new, and nothing twice.

Every point has its time from the run's own files, so that sending it again changes nothing. Three
tags on MLflow's run say how far it has come; without them everything is sent again, to the same
effect. A run of MLflow's that holds what the files do not say is deleted and made anew.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

from smt.config.load import require_experiments
from smt.config.project import Project
from smt.errors import UserError
from smt.runs import record
from smt.runs.atomic import explained
from smt.runs.paths import Layout
from smt.runs.record import SentRun, SyncReceipt
from smt.tracking import client as mlflow
from smt.tracking.artifacts import SENT_FILES, register, send_files
from smt.tracking.client import Point, RemoteRun, Server
from smt.tracking.view import RunView, digest, milliseconds, views

SENT_COUNT = "smt.sent.points"
SENT_DIGEST = "smt.sent.sha256"
SENT_FINAL = "smt.sent.final"
SENT_EVALUATION = "smt.sent.evaluation"
REMEDY = "give a results folder that can be written: smt --results DIR, or SMT_RESULTS"
_SENT = (SENT_COUNT, SENT_DIGEST, SENT_FINAL, SENT_EVALUATION, SENT_FILES)


@dataclass(frozen=True)
class Outcome:
    """What a sync did."""

    runs: int
    """Runs that MLflow now shows as their files say."""
    changed: int
    """Those of them for which something was sent."""
    points: int
    """Values of metrics sent."""
    remade: tuple[str, ...]
    """Runs that MLflow held otherwise, and that were made anew there."""
    files: int = 0
    """Finished runs whose files were sent."""
    registered: tuple[str, ...] = ()
    """What the model registry was given."""


class _Sent(NamedTuple):
    """What was sent of one run."""

    changed: bool = False
    points: int = 0
    remade: bool = False


def sync(
    project: Project,
    layout: Layout,
    experiments: Sequence[str] = (),
    *,
    files: bool = False,
    registered: bool = False,
) -> Outcome:
    """Bring MLflow up to the files of these experiments' runs, or of all, and leave a receipt.

    Numbers come first. With `files`, finished runs then get weights and the like as artifacts; what
    is to be `registered` in the model registry needs them there.

    Raises:
        UserError: no such experiment, MLflow or its store of artifacts does not answer, or files of
            a run are damaged; in that case all other runs have been sent.
    """
    require_experiments(project, experiments)
    chosen = [name for name in project.order if not experiments or name in experiments]
    with mlflow.locked(layout, "smt: another sync is at work in this folder; waiting for it"):
        mlflow.prepare(layout, layout.tracking_uri())
        server = Server.of(layout)
        known = _by_fingerprint(server)
        found, damages = views(project, layout, chosen)
        sent, problems = _send_all(server, found, known)
        problems = [*map(str, damages), *problems]
        every = views(project, layout, project.order)[0] if experiments else found
        _write_receipt(layout, server, known, every)
        count = send_files(server, found, known) if files or registered else 0
        entered = register(server, found, known) if registered else []
    if problems:
        others = f" (and {len(problems) - 1} more runs like it)" if problems[1:] else ""
        raise UserError(f"{problems[0]}{others}; all other runs are in MLflow")
    return Outcome(
        runs=len(sent),
        changed=sum(each.changed for each in sent.values()),
        points=sum(each.points for each in sent.values()),
        remade=tuple(name for name, each in sent.items() if each.remade),
        files=count,
        registered=tuple(entered),
    )


def _send_all(
    server: Server, found: Sequence[RunView], known: dict[str, RemoteRun]
) -> tuple[dict[str, _Sent], list[str]]:
    """Return what was sent of each work folder, and what is wrong with those that were not."""
    sent: dict[str, _Sent] = {}
    problems: list[str] = []
    for view in found:
        sender = _Sender(server, view, known)
        if sender.is_up_to_date():
            sent[str(view.folder)] = _Sent()
            continue
        try:
            view.check()
        except UserError as error:
            problems.append(str(error))
            continue
        sent[str(view.folder)] = sender.send()
    return sent, problems


def _by_fingerprint(server: Server) -> dict[str, RemoteRun]:
    """Return MLflow's run of each fingerprint.

    Two hosts that sync at once can make a run twice: the first one stays, here and there.
    """
    known: dict[str, RemoteRun] = {}
    for run in server.runs():
        fingerprint = run.tags.get("smt.fingerprint")
        if fingerprint is None:
            continue  # somebody's own run beside ours
        if fingerprint in known:
            server.delete(run.run_id)
        known.setdefault(fingerprint, run)
    return known


class _Sender:
    """Brings MLflow's run of one work folder up to its files."""

    def __init__(self, server: Server, view: RunView, known: dict[str, RemoteRun]) -> None:
        self.server, self.view, self.known = server, view, known
        self.tags = view.tags()
        self.params = view.params()
        self.sections = {SENT_FINAL: view.final_points, SENT_EVALUATION: view.evaluation_points}

    def is_up_to_date(self) -> bool:
        """Whether nothing needs to be sent, as far as can be told without reading the journal."""
        remote = self.known.get(self.view.fingerprint)
        return remote is not None and (self._is_complete(remote) or self._is_history(remote))

    def send(self) -> _Sent:
        """Send what is new, to a new run of MLflow's if the one there is not this one."""
        remote = self.known.get(self.view.fingerprint)
        remade = remote is not None and self._contradicts(remote)
        if remote is not None and remade:
            self.server.delete(remote.run_id)
        if remote is None or remade:
            remote = self._create()
        return self._send_new(remote)._replace(remade=remade)

    def _is_complete(self, remote: RemoteRun) -> bool:
        """Whether a finished run is there whole: then its journal need not be read."""
        return (
            self.view.final is not None
            and remote.status == "FINISHED"
            and {**self.tags, **self._section_tags()}.items() <= remote.tags.items()
        )

    def _is_history(self, remote: RemoteRun) -> bool:
        """Whether the run was finished once, and only its final files have gone since."""
        return (
            remote.status == "FINISHED"
            and self.view.final is None
            and remote.tags.get("smt.created") == self.tags["smt.created"]
            and remote.tags.get("smt.attempts") == self.tags["smt.attempts"]
        )

    def _contradicts(self, remote: RemoteRun) -> bool:
        """Whether MLflow's run holds what these files do not say."""
        points = self.view.points
        sent = int(remote.tags.get(SENT_COUNT, 0))
        # A journal that was cut back holds fewer points for a while; it writes the same again.
        comparable = len(points) >= sent or self.view.final is not None
        differs = remote.tags.get(SENT_DIGEST, digest([])) != digest(points[:sent])
        return (
            remote.tags.get("smt.created") != self.tags["smt.created"]
            or any(self.params.get(key) != value for key, value in remote.params.items())
            or (comparable and differs)
            or any(remote.tags.get(tag, sent) != sent for tag, sent in self._section_tags().items())
        )

    def _section_tags(self) -> dict[str, str]:
        return {tag: digest(points) for tag, points in self.sections.items() if points}

    def _create(self) -> RemoteRun:
        tags = {key: self.tags[key] for key in ("smt.fingerprint", "smt.created")}
        tags["mlflow.note.content"] = self.view.description  # the user may write over it
        started = milliseconds(self.view.created)
        return self.server.create(self.view.table, self.view.name, started, tags)

    def _send_new(self, remote: RemoteRun) -> _Sent:
        new = self._new_points(remote)
        params = {
            key: value for key, value in self.params.items() if remote.params.get(key) != value
        }
        tags = {**self.tags, **self._sent_tags(remote)}
        tags = {key: value for key, value in tags.items() if remote.tags.get(key) != value}
        gone = [
            key
            for key in remote.tags
            if key.startswith("smt.") and key not in self.tags and key not in _SENT
        ]
        if new or params or tags:
            self.server.send(remote.run_id, new, params, tags)
        for key in gone:
            self.server.remove_tag(remote.run_id, key)
        moved = remote.status != self.view.status
        if moved:
            self.server.set_status(remote.run_id, self.view.status, self.view.end())
        self.known[self.view.fingerprint] = replace(remote, status=self.view.status)
        return _Sent(bool(new or params or tags or gone or moved), len(new))

    def _new_points(self, remote: RemoteRun) -> list[Point]:
        new = self.view.points[int(remote.tags.get(SENT_COUNT, 0)) :]
        for tag, points in self.sections.items():
            if tag not in remote.tags:
                new = new + points
        return new

    def _sent_tags(self, remote: RemoteRun) -> dict[str, str]:
        tags = self._section_tags()
        points = self.view.points
        if len(points) >= int(remote.tags.get(SENT_COUNT, 0)):
            tags |= {SENT_COUNT: str(len(points)), SENT_DIGEST: digest(points)}
        return tags


def _write_receipt(
    layout: Layout, server: Server, known: dict[str, RemoteRun], every: Sequence[RunView]
) -> None:
    runs = [
        SentRun(
            experiment=view.run.experiment,
            seed=view.run.seed,
            fingerprint=view.fingerprint,
            run_id=known[view.fingerprint].run_id,
            experiment_id=known[view.fingerprint].experiment_id,
            status=known[view.fingerprint].status,
        )
        for view in every
        if view.fingerprint in known
    ]
    receipt = SyncReceipt(
        tracking_uri=mlflow.public(server.uri),
        family=server.family,
        experiments=server.experiments(),
        runs=runs,
    )
    with explained(layout.sync_receipt, REMEDY):
        record.write(layout.sync_receipt, receipt)
