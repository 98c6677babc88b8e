"""What a rank says once it has lost another."""

import shutil

import pytest
import torch

from smt.config.experiments import Run
from smt.engine.distributed import PeerFailed, PeerLost, Ranks
from smt.errors import EXIT_RESUME, EXIT_TRAINING, TrainingError
from smt.runs import provenance
from smt.tasks import failures

RUN = Run(experiment="imagenet1k_smt_tiny", seed=0)


@pytest.fixture
def lose_peer(tmp_path, monkeypatch):
    """Return a function that loses a peer while the disk has so many bytes free."""
    monkeypatch.setattr(failures, "PEER_FAILURE_TIMEOUT", 0.0)

    def lose(free=1 << 40):
        monkeypatch.setattr(
            shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(0, 0, free)
        )
        of_rank_1 = failures.Failures(RUN, Ranks(1, 2, torch.device("cpu")), tmp_path)
        with of_rank_1.detect_peer_loss():
            raise RuntimeError("[gloo/transport/tcp/pair.cc:561] Connection closed by peer")

    return lose


def test_a_peer_that_recorded_nothing_is_lost(lose_peer):
    with pytest.raises(PeerLost, match="killed, or its node is down") as lost:
        lose_peer()
    assert lost.value.exit_code == EXIT_RESUME


def test_on_a_full_disk_a_peer_could_record_nothing(lose_peer, tmp_path):
    with pytest.raises(TrainingError) as failed:
        lose_peer(free=4096)
    assert f"the disk of {tmp_path} is full; fix that" in str(failed.value)
    assert failed.value.exit_code == EXIT_TRAINING


def test_a_peer_that_recorded_its_failure_is_not_lost(lose_peer, tmp_path):
    provenance.record_failure(tmp_path, "the loss is not finite", 7, 4)
    with pytest.raises(PeerFailed) as failed:
        lose_peer(free=4096)
    assert failed.value.exit_code == 4
