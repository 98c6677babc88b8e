"""`smt ui`: MLflow's own pages on this project's runs."""

import os
import socket
import sys
from typing import TYPE_CHECKING

import click

from smt.commands.common import load, scale_option
from smt.config.project import Project
from smt.errors import UserError

if TYPE_CHECKING:
    from smt.tracking.client import TrackingClient

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.argument("names", nargs=-1, metavar="[TABLE | RUN...]")
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@scale_option
def command(names: tuple[str, ...], port: int, host: str, scale: str) -> None:
    """Serve MLflow's UI on this project's runs until it is stopped (Ctrl-C).

    The link that it prints opens the runs of TABLE, with the curves of its metric and of the loss
    first [the first table that has a run]; or those of each RUN: EXPERIMENT-seedN, or EXPERIMENT
    for all its seeds. With an MLFLOW_TRACKING_URI that is a server already, only say where it is.
    """
    from smt.tracking import client, comparison

    project, layout = load(scale)
    comparison.require_names(project, names)
    uri = layout.tracking_uri()
    if client.is_http(uri):
        server = client.TrackingClient.from_layout(layout)
        link = _link(project, server, names, client.web_url(uri))
        click.echo(f"MLflow runs already; open {link}")
        return
    _require_free(host, port)
    if host not in LOOPBACK:
        click.echo(
            f"smt: warning: whoever reaches {host}:{port} can read and change all runs", err=True
        )
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    with client.locked(layout, "smt: waiting for a sync of this results folder"):
        client.prepare(layout, uri)
        link = _link(project, client.TrackingClient.from_layout(layout), names, address)
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else 15 processes and 2 GB
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # as an argument its password would show in ps
    click.echo(f"MLflow UI, until Ctrl-C: {link}")
    sys.stdout.flush()
    options = {
        "--artifacts-destination": layout.artifacts.resolve().as_uri(),
        "--host": host,
        "--port": str(port),
        "--workers": "1",
    }
    words = [word for pair in options.items() for word in pair]
    # The server takes this process's place: its pid, its signals.
    os.execv(sys.executable, [sys.executable, "-m", "mlflow", "server", *words])


def _link(project: Project, server: "TrackingClient", names: tuple[str, ...], address: str) -> str:
    """Return the link to one comparison; to all experiments while there is no run at all."""
    from smt.tracking import comparison
    from smt.tracking.client import runs_url

    if names:
        return comparison.named(project, server, names).publish(server, address)
    first = comparison.default(project, server)
    if first is None:
        return runs_url(address, list(server.experiments().values()))
    return first.publish(server, address)


def _require_free(host: str, port: int) -> None:
    """Raise a UserError that names a free port where this one is taken."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    try:
        with socket.socket(family) as probe:
            probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            probe.bind((host, port))
    except OSError as error:
        try:
            with socket.socket(family) as other:
                other.bind((host, 0))
                free = other.getsockname()[1]
        except OSError:
            raise UserError(
                f"--host {host}: cannot listen there ({error.strerror or error}); "
                "valid: an address of this machine, such as 127.0.0.1"
            ) from None
        raise UserError(
            f"--port {port}: cannot be used on {host} ({error.strerror}); "
            f"free at the moment: smt ui --port {free}"
        ) from None
