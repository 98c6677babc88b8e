"""Checks of smt doctor on the shared folder, from what two hosts measured."""

from dataclasses import replace

import pytest

from smt.cluster.doctor import file_system
from smt.cluster.doctor.two_hosts import Measurements

HEALTHY = Measurements(
    hosts=("n1", "n2"),
    locks={"lockf": "refused", "flock": "refused"},
    release_seconds={"lockf": 0.0, "flock": 0.02},
    visible_seconds={"stat": 0.0, "listing": 0.0, "replaced": 0.0, "appended": 0.0},
    appended_lines=(200, 200),
    fsync_seconds=0.01,
    clock_difference=0.001,
)


def checks(**changes):
    return {check.subject: check for check in file_system.checks(replace(HEALTHY, **changes))}


def test_a_healthy_file_system_is_ok_in_every_line():
    assert {subject: check.level for subject, check in checks().items()} == {
        "hosts": "ok", "locks": "ok", "stat": "ok", "listing": "ok", "replace": "ok",
        "append": "ok", "two writers": "ok", "fsync": "ok", "clocks": "ok",
    }  # fmt: skip


def test_hosts_of_one_kernel_and_the_reason_for_their_choice_are_named():
    measurements = replace(HEALTHY, same_kernel=True)
    hosts = next(iter(file_system.checks(measurements, "no two nodes: MaxNodes is 1")))
    assert "no two nodes: MaxNodes is 1; they are one machine" in hosts.text


@pytest.mark.parametrize("reason", ["Function not implemented", "No locks available"])
def test_a_file_system_without_locks_is_an_error(reason):
    locks = checks(locks={"lockf": reason, "flock": "refused"})["locks"]
    assert locks.level == "error" and f"lockf: {reason}" in locks.text
    assert "Lustre with flock" in locks.remedy


def test_one_kind_of_lock_granted_twice_is_an_error():
    locks = checks(locks={"lockf": "refused", "flock": "granted"})["locks"]
    assert locks.level == "error" and "same lock at once (flock)" in locks.text


def test_a_lock_that_stays_held_after_its_release_is_a_warning():
    locks = checks(release_seconds={"lockf": None, "flock": 0.0})["locks"]
    assert locks.level == "warning" and "(lockf)" in locks.text


@pytest.mark.parametrize(
    ("change", "subject", "level", "remedy"),
    [
        ("stat", "stat", "warning", "lookupcache=positive"),
        ("stat", "stat", "warning", "latency-wait above the mount's acdirmax"),
        ("listing", "listing", "warning", "acdirmax=1"),
        ("replaced", "replace", "error", "without nocto"),
        ("appended", "append", "warning", "curves in smt status and MLflow are late"),
    ],
)
def test_a_change_that_is_visible_late_has_its_remedy(change, subject, level, remedy):
    check = checks(visible_seconds={**HEALTHY.visible_seconds, change: None})[subject]
    assert check.level == level
    assert check.text.endswith("only after 10 s or more")
    assert remedy in check.remedy


def test_lost_lines_of_two_writers_are_counted():
    check = checks(appended_lines=(100, 200))["two writers"]
    assert check.level == "warning" and check.text.startswith("100 of 200 lines")


def test_a_slow_fsync_is_a_warning():
    check = checks(fsync_seconds=0.25)["fsync"]
    assert check.level == "warning" and "takes 250.0 ms" in check.text


def test_clocks_that_differ_are_a_warning():
    check = checks(clock_difference=-120.0)["clocks"]
    assert check.level == "warning" and check.text.startswith("n2 is 120.000 s behind n1")


def test_what_was_measured_before_a_failure_is_still_reported():
    partial = Measurements(hosts=("n1", "n2"), locks=HEALTHY.locks, problem="n2: /r: Stale handle")
    subjects = [(check.level, check.subject) for check in file_system.checks(partial)]
    assert subjects == [("ok", "hosts"), ("ok", "locks"), ("error", "hosts")]
