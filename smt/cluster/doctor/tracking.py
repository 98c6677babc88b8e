"""Whether MLflow is where the runs will be sent."""

import os
import urllib.error
import urllib.request
from pathlib import Path

from smt.cluster.doctor.finding import Finding, Findings, error, ok
from smt.errors import first_line
from smt.tracking import client

_TIMEOUT = 10.0
"""Seconds."""
_REMEDY = (
    "start it, or set MLFLOW_TRACKING_URI to one that runs; trainings go on without it, and "
    "`smt sync` sends what they wrote"
)


def mlflow(uri: str) -> Findings:
    """MLflow at `uri` answers, or its database can be made."""
    if client.is_http(uri):
        yield _server(uri)
    elif uri.startswith("sqlite:///"):
        yield _file(Path(uri.removeprefix("sqlite:///")))
    else:
        yield _database(uri)


def _server(uri: str) -> Finding:
    address = client.web(uri)
    try:
        with urllib.request.urlopen(f"{address}/health", timeout=_TIMEOUT) as answer:
            answer.read()
    except urllib.error.HTTPError as problem:
        return error("mlflow", f"{address}/health: HTTP status {problem.code}", _REMEDY)
    except (OSError, ValueError) as problem:
        cause = getattr(problem, "reason", problem)
        return error(
            "mlflow", f"{address} does not answer: {first_line(_exception(cause))}", _REMEDY
        )
    return ok("mlflow", f"{address} answers")


def _exception(cause: object) -> Exception:
    return cause if isinstance(cause, Exception) else OSError(str(cause))


def _file(path: Path) -> Finding:
    folder = next(each for each in path.parents if each.is_dir())
    if not os.access(path if path.exists() else folder, os.W_OK):
        return error(
            "mlflow",
            f"{path}: no permission to write",
            "set MLFLOW_TRACKING_URI, or SMT_RESULTS to a folder that can be written",
        )
    return ok("mlflow", f"{path}" if path.exists() else f"{path} will be made")


def _database(uri: str) -> Finding:
    from sqlalchemy import create_engine
    from sqlalchemy.exc import SQLAlchemyError

    try:
        create_engine(uri, connect_args={"connect_timeout": int(_TIMEOUT)}).connect().close()
    except (SQLAlchemyError, ImportError, OSError) as problem:
        said = client.public(first_line(problem))
        return error("mlflow", f"{client.public(uri)} does not answer: {said}", _REMEDY)
    return ok("mlflow", f"{client.public(uri)} answers")
