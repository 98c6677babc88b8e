"""Mounts of a folder through sshfs, without an SSH server: sftp-server answers over a socket."""

import os
import socket
import subprocess
from contextlib import contextmanager

import pytest

from testbed.waiting import wait_for
from tests.helpers import debian


@contextmanager
def mounted(folder, mount_point, *options):
    """Mount `folder` at `mount_point`; each mount is a client of its own, as on a host of its own.

    Without sshfs, or without permission to mount, the test is skipped.
    """
    sshfs, sftp_server = debian.require("sshfs"), debian.require("sftp-server")
    mount_point.mkdir()
    client_end, server_end = socket.socketpair()
    command = [sshfs, "-f", "-o", ",".join(["passive", *options]), f":{folder}", mount_point]
    with client_end, server_end:
        server = subprocess.Popen([sftp_server], stdin=server_end, stdout=server_end)
        client = subprocess.Popen(command, stdin=client_end, stdout=client_end)
    try:
        wait_for(lambda: os.path.ismount(mount_point) or client.poll() is not None)
        if client.poll() is not None:
            pytest.skip("sshfs cannot mount here: no /dev/fuse, or no permission")
        yield mount_point
    finally:
        subprocess.run(["fusermount3", "-u", mount_point], capture_output=True)
        # A mount namespace that was made meanwhile has the mount as well, which keeps both running.
        for process in (client, server):
            process.terminate()
            process.wait()
