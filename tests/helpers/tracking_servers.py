"""Real servers for the tests of tracking: PostgreSQL, MLflow, and a proxy that can fail."""

import http.client
import os
import pwd
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
from contextlib import contextmanager, suppress
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

from sqlalchemy import create_engine, text

from testbed.waiting import PATIENCE, wait_for_answer
from tests.helpers.debian import POSTGRESQL, require


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


@contextmanager
def postgres():
    """Run a PostgreSQL on loopback; yield its URI, without a database name.

    The server runs as a user of its own, who cannot enter the folders of pytest.
    """
    require("initdb")
    with tempfile.TemporaryDirectory(prefix="smt-postgresql-") as folder:
        # It refuses to run as root; Debian's package has created this user.
        is_root = os.geteuid() == 0
        if is_root:
            os.chown(folder, pwd.getpwnam("postgres").pw_uid, -1)
        prefix = (
            ["setpriv", "--reuid=postgres", "--regid=postgres", "--clear-groups"] if is_root else []
        )
        data, port = f"{folder}/data", free_port()

        def run(program, *arguments):
            command = [*prefix, str(POSTGRESQL[-1] / program), *arguments]
            subprocess.run(command, check=True, cwd=folder, stdout=subprocess.DEVNULL)

        run("initdb", "-D", data, "-U", "smt", "--auth=trust", "--no-sync")
        options = f"-p {port} -c listen_addresses=127.0.0.1 -c unix_socket_directories={folder}"
        run("pg_ctl", "-D", data, "-w", "-l", f"{folder}/log", "-o", options, "start")
        try:
            yield f"postgresql://smt@127.0.0.1:{port}"
        finally:
            run("pg_ctl", "-D", data, "-m", "immediate", "-w", "stop")


def empty_database(uri, name):
    """Create a database in a PostgreSQL; return its URI."""
    engine = create_engine(f"{uri}/postgres", isolation_level="AUTOCOMMIT")
    with engine.connect() as connection:
        connection.execute(text(f'create database "{name}"'))
    engine.dispose()
    return f"{uri}/{name}"


class MlflowServer:
    """`mlflow server` on a port of its own, which can be killed and started again."""

    def __init__(self, folder, store=None, port=None):
        folder.mkdir(parents=True, exist_ok=True)
        self.port, self.folder = port or free_port(), folder
        self.store = store or f"sqlite:///{folder}/server.db"
        self.uri = f"http://127.0.0.1:{self.port}"
        self.process = None

    def start(self):
        environment = {**os.environ, "MLFLOW_SERVER_ENABLE_JOB_EXECUTION": "false",
                       "MLFLOW_DISABLE_TELEMETRY": "true"}  # fmt: skip
        with (self.folder / "server.log").open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "mlflow", "server", "--backend-store-uri", self.store,
                 "--artifacts-destination", (self.folder / "artifacts").as_uri(),
                 "--host", "127.0.0.1", "--port", str(self.port), "--workers", "1"],
                stdout=log, stderr=log, cwd=self.folder, env=environment, start_new_session=True,
            )  # fmt: skip
        wait_for_answer(f"{self.uri}/health", self.process, self.folder / "server.log")

    def kill(self):
        """Send SIGKILL to the server and its workers, unless they have ended."""
        with suppress(ProcessLookupError):
            os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def rename_experiments(self):
        """Give this project's experiments other names, so that the next test finds none."""
        from mlflow.tracking.client import MlflowClient

        client = MlflowClient(self.uri)
        for experiment in client.search_experiments(filter_string="name LIKE 'smt-%'"):
            number = experiment.experiment_id
            client.rename_experiment(number, f"{number}/{experiment.name}")


@contextmanager
def mlflow_server(folder, store=None):
    server = MlflowServer(folder, store)
    server.start()
    try:
        yield server
    finally:
        server.kill()


class UnreliableProxy:
    """A proxy between MLflow's client and its server; `state` can be changed at any time.

    ok; slow: 0.2 s per request; error: responds with 500; lost: forwards the request and drops the
    response; hang: does not respond until the state is changed.
    """

    def __init__(self, port):
        self.state, self.requests = "ok", 0
        proxy = self

        class Handler(BaseHTTPRequestHandler):
            def do_request(self):
                proxy.requests += 1
                length = int(self.headers.get("Content-Length") or 0)
                body, state = self.rfile.read(length), proxy.state
                if state == "slow":
                    time.sleep(0.2)
                while state == "hang" and proxy.state == "hang":
                    time.sleep(0.1)
                if state == "hang":
                    self.connection.close()
                    return
                if state == "error":
                    self.respond(500, b"error")
                    return
                upstream = http.client.HTTPConnection("127.0.0.1", port, timeout=PATIENCE)
                upstream.request(self.command, self.path, body, dict(self.headers))
                response = upstream.getresponse()
                content = response.read()
                if state == "lost":
                    self.connection.close()
                else:
                    self.respond(response.status, content, response.getheader("Content-Type"))

            do_GET = do_POST = do_PUT = do_PATCH = do_DELETE = do_request  # noqa: N815 (http.server's)

            def respond(self, status, content, content_type="text/plain"):
                self.send_response(status)
                self.send_header("Content-Type", content_type or "application/json")
                self.send_header("Content-Length", str(len(content)))
                self.end_headers()
                self.wfile.write(content)

            def log_message(self, *_):
                pass

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.server.daemon_threads = True
        self.server.handle_error = lambda *_: None
        self.uri = f"http://127.0.0.1:{self.server.server_address[1]}"
        threading.Thread(target=self.server.serve_forever, daemon=True).start()

    def close(self):
        self.state = "ok"
        self.server.shutdown()
        self.server.server_close()


@contextmanager
def unreliable_proxy(server):
    proxy = UnreliableProxy(server.port)
    try:
        yield proxy
    finally:
        proxy.close()
