"""The executor on real NFS, whose clients are kernels of their own (User-Mode Linux)."""

import os
import shlex
import shutil
import sys

import pytest

from testbed.fixtures import report_missing, require_slurm
from testbed.uml import SHARED, SLURM_CONF, NfsNetwork, missing_packages
from testbed.waiting import wait_for

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("nfs")]  # one network for both tests

LOOKUP_CACHE = "acdirmin=3600,acdirmax=3600"
"""The defaults are 30 and 60 s; more, so that a test does not depend on this machine's speed."""

WORKFLOW = """
rule second:
    input: 'first/out.txt'
    output: 'second/out.txt'
    shell: 'cat {input} > {output}; hostname >> {output}'

rule first:
    output: 'first/out.txt'
    shell: 'while [ ! -e go ]; do ls > /dev/null; sleep 0.1; done; hostname > {output}'
"""


@pytest.fixture(scope="module")
def network():
    """An NFS server, a client with SLURM's controller, and one that is its node."""
    require_slurm()
    if missing := missing_packages():
        report_missing(f"{' '.join(missing)} missing (apt-get install {' '.join(missing)})")
    if os.geteuid() != 0 or not shutil.which("unshare"):
        report_missing("User-Mode Linux with a network takes root")
    with NfsNetwork(LOOKUP_CACHE) as network:
        network.start_slurm()
        yield network


def start_snakemake(client, name):
    """Start Snakemake on a host, in a new folder of the shared one; return that folder."""
    folder = f"{SHARED}/{name}"
    variables = {"PYTHONPATH": os.environ.get("PYTHONPATH", ""), "PYTHONDONTWRITEBYTECODE": "1"}
    client.run(f"mkdir -p {folder}/first {folder}/second")
    client.run(f"echo {shlex.quote(WORKFLOW)} > {folder}/Snakefile")
    environment = " ".join(f"{key}={shlex.quote(value)}" for key, value in variables.items())
    client.run(
        f"cd {folder}; export {SLURM_CONF} {environment}; ("
        f"{sys.executable} -m snakemake --executor submitit --jobs 2 --submitit-status-interval 1 "
        "--nolock --latency-wait 3 > driver.log 2>&1; echo $? > driver.code) > /dev/null 2>&1 &"
    )
    return folder


def await_that(client, folder, condition):
    """Wait until a command of bash succeeds in a folder, of which a host lists no other."""
    wait_for(
        lambda: client.attempt(f"cd {folder} && ls > /dev/null && {condition}")[0] == 0,
        lambda: client.attempt(f"cat {folder}/driver.log")[1],
        every=0.5,
    )


def test_outputs_that_another_host_wrote_are_seen_at_once(network):
    """The driver's host has looked for both outputs before, and its kernel remembers that."""
    driver, node = network.clients
    folder = start_snakemake(driver, "outputs")
    await_that(node, folder, "ls -R .snakemake | grep -q submitted.pkl")
    for output in ("first/out.txt", "second/out.txt"):
        assert driver.attempt(f"stat {folder}/{output}")[0] != 0
    node.run(f"touch {folder}/go")
    await_that(driver, folder, "[ -s driver.code ]")
    log = driver.run(f"cat {folder}/driver.log")
    assert driver.run(f"cat {folder}/driver.code").strip() == "0", log
    assert node.run(f"cat {folder}/second/out.txt").split() == [node.name] * 2


def test_a_shared_folder_that_is_gone_for_a_while_only_delays(network):
    driver, node = network.clients
    folder = start_snakemake(driver, "outage")
    await_that(node, folder, "ls -R .snakemake | grep -q attempts")
    network.stop_server()
    for client in network.clients:  # what is asked for now is not answered
        assert client.attempt(f"timeout --signal=KILL 20 ls {folder}")[0] == 137
    network.start_server()
    node.run(f"touch {folder}/go")
    await_that(driver, folder, "[ -s driver.code ]")
    log = driver.run(f"cat {folder}/driver.log")
    assert driver.run(f"cat {folder}/driver.code").strip() == "0", log
    assert node.run(f"cat {folder}/second/out.txt").split() == [node.name] * 2
