"""A real S3 endpoint on this machine (moto's server), behind a proxy that can cut connections."""

import contextlib
import importlib.util
import os
import socket
import subprocess
import sys
import threading
from pathlib import Path
from typing import Any

import pytest

from testbed.waiting import wait_for

BUCKET = "smt"
KEY, SECRET = "AKIATESTOFSMT", "secret-that-must-not-be-kept"
PACKAGES = {"dvc_s3": "dvc-s3", "moto": "moto", "py_partiql_parser": "py-partiql-parser"}


def require_s3() -> None:
    """Skip the test if moto or dvc-s3 is not installed; in continuous integration it fails."""
    missing = [name for module, name in PACKAGES.items() if not importlib.util.find_spec(module)]
    if not missing:
        return
    reason = f"no S3 endpoint: pip install {' '.join(missing)} (requirements.lock pins them)"
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


class S3Server:
    """moto's server in a process of its own; `url` is that of a proxy before it."""

    def __init__(self, folder: Path) -> None:
        self._port = _free_port()
        self._log = (folder / "s3.log").open("wb")
        self._process = subprocess.Popen(
            [sys.executable, "-m", "moto.server", "-H", "127.0.0.1", "-p", str(self._port)],
            stdout=self._log, stderr=subprocess.STDOUT,
        )  # fmt: skip
        self._await()
        self.proxy = LimitedProxy(self._port)
        self.url = f"http://127.0.0.1:{self.proxy.port}"
        self.client().create_bucket(Bucket=BUCKET)

    def _await(self) -> None:
        def answers() -> bool:
            assert self._process.poll() is None, self._log_text()
            with contextlib.suppress(OSError), socket.create_connection(("127.0.0.1", self._port)):
                return True
            return False

        wait_for(answers, self._log_text, every=0.05)

    def _log_text(self) -> str:
        return Path(self._log.name).read_text()

    def client(self) -> Any:
        """Return boto3's client, which does not use the proxy."""
        import boto3

        return boto3.client(
            "s3", endpoint_url=f"http://127.0.0.1:{self._port}", region_name="us-east-1",
            aws_access_key_id=KEY, aws_secret_access_key=SECRET,
        )  # fmt: skip

    def stop(self) -> None:
        self.proxy.close()
        self._process.kill()
        self._process.wait()
        self._log.close()


def environment() -> dict[str, str]:
    """Return the environment of a user of S3, with one attempt: a failure is an error at once."""
    return {
        "AWS_ACCESS_KEY_ID": KEY, "AWS_SECRET_ACCESS_KEY": SECRET,
        "AWS_DEFAULT_REGION": "us-east-1", "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_MAX_ATTEMPTS": "1",
    }  # fmt: skip


class LimitedProxy:
    """Forwards connections to a port and counts requests; beyond a limit it closes all of them."""

    def __init__(self, target: int) -> None:
        self._target = target
        self._socket = socket.create_server(("127.0.0.1", 0))
        self.port = self._socket.getsockname()[1]
        self.reset()
        threading.Thread(target=self._accept, daemon=True).start()

    @property
    def is_closed(self) -> bool:
        return self.limit is not None and self.count > self.limit

    def reset(self, method: str = "PUT", limit: int | None = None) -> None:
        """Count requests of a method from 0; forward `limit` of them, or all."""
        self._method, self.limit, self.count = f"{method} /".encode(), limit, 0

    def close(self) -> None:
        self._socket.close()

    def _accept(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                client, _ = self._socket.accept()
                if self.is_closed:
                    client.close()
                    continue
                server = socket.create_connection(("127.0.0.1", self._target))
                for source, sink in ((client, server), (server, client)):
                    threading.Thread(
                        target=self._forward, args=(source, sink, source is client), daemon=True
                    ).start()

    def _forward(self, source: socket.socket, sink: socket.socket, is_request: bool) -> None:
        with contextlib.suppress(OSError):
            while data := source.recv(65536):
                # A request starts a packet: the client sends the next one after the response.
                self.count += is_request and data.startswith(self._method)
                if self.is_closed:
                    break
                sink.sendall(data)
        for end in (source, sink):
            with contextlib.suppress(OSError):
                end.shutdown(socket.SHUT_RDWR)


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
