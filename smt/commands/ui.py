"""`smt ui`: MLflow's own pages on this project's runs."""

import os
import socket
import sys

import click

from smt.commands.common import load, scale_option
from smt.errors import UserError
from smt.runs import record

LOOPBACK = ("127.0.0.1", "localhost", "::1")


@click.command()
@click.option("--port", type=click.IntRange(1, 65535), default=5000, show_default=True)
@click.option("--host", default="127.0.0.1", show_default=True, help="Address to listen at.")
@scale_option
def command(port: int, host: str, scale: str) -> None:
    """Serve MLflow's UI on this project's runs until it is stopped (Ctrl-C).

    With an MLFLOW_TRACKING_URI that is a server already, only say where it is.
    """
    from smt.tracking import client

    _, layout = load(scale)
    uri = layout.tracking_uri()
    receipt = record.read_receipt(layout)
    here = receipt is not None and receipt.tracking_uri == client.redact_password(uri)
    synced = list(receipt.experiments.values()) if receipt and here else []
    if client.is_http(uri):
        click.echo(f"MLflow runs already; open {client.runs_url(client.web_url(uri), synced)}")
        return
    _require_free(host, port)
    if host not in LOOPBACK:
        click.echo(
            f"smt: warning: whoever reaches {host}:{port} can read and change all runs", err=True
        )
    with client.locked(layout, "smt: waiting for a sync of this results folder"):
        client.prepare(layout, uri)
    client.configure()
    os.environ["MLFLOW_SERVER_ENABLE_JOB_EXECUTION"] = "false"  # else 15 processes and 2 GB
    os.environ["MLFLOW_BACKEND_STORE_URI"] = uri  # as an argument its password would show in ps
    address = f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"
    click.echo(f"MLflow UI, until Ctrl-C: {client.runs_url(address, synced)}")
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
