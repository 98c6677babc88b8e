"""Milestones: their epochs, their digests, and the chain of them in a journal."""

import json

import pytest

from smt.runs import milestones
from smt.runs.journal import JOURNAL, Journal, Position
from smt.runs.milestones import BrokenChain, TensorBytes, state_digest


@pytest.mark.parametrize(
    ("total", "count", "expected"),
    [
        (300, 10, range(30, 301, 30)),
        (12, 5, (2, 4, 7, 9, 12)),
        (3, 10, (1, 2, 3)),
        (90, 1, (90,)),
        (90, 0, ()),
    ],
)
def test_milestones_are_spaced_evenly_and_the_last_is_the_end(total, count, expected):
    assert milestones.epochs(total, count) == set(expected)


WEIGHT, BIAS = TensorBytes("weight", "F32", (2,), b"12345678"), TensorBytes("bias", "F32", (), b"1")
FACTS = {"step": 3, "best": 0.5, "seconds": 17.0, "journal": {"bytes": 9}}


def test_a_digest_depends_on_the_state_and_not_on_time_or_order():
    digest = state_digest([WEIGHT, BIAS], FACTS)
    assert state_digest([BIAS, WEIGHT], FACTS | {"seconds": 1.0, "journal": {}}) == digest
    others = [
        state_digest([WEIGHT], FACTS),
        state_digest([WEIGHT, BIAS], FACTS | {"best": 0.6}),
        *(
            state_digest([WEIGHT._replace(**change), BIAS], FACTS)
            for change in ({"name": "v"}, {"dtype": "I32"}, {"shape": (1, 2)},
                           {"content": b"12345679"})
        ),
    ]  # fmt: skip
    assert len({digest, *others}) == 1 + len(others)


@pytest.fixture
def folder(tmp_path):
    """A work folder whose journal has milestones at steps 4, 8 and 12, and a line between each."""
    journal = Journal(tmp_path, Position())
    for epoch in (1, 2, 3):
        journal.append(4 * epoch - 2, epoch - 1, {"train/loss": 1.0}, {})
        journal.append(4 * epoch, epoch, {"eval/loss": 2.0}, {}, f"{epoch}" * 64)
    journal.close()
    return tmp_path


def lines(folder):
    return (folder / JOURNAL).read_bytes().splitlines(keepends=True)


def write(folder, content):
    (folder / JOURNAL).write_bytes(b"".join(content))


def test_stretches_lie_between_the_start_and_the_milestones(folder):
    chain = milestones.read(folder)
    stretches = milestones.stretches(chain)
    assert [(each.start.step, each.end.step, each.steps) for each in stretches] == [
        (0, 4, 4), (4, 8, 4), (8, 12, 4)
    ]  # fmt: skip
    assert str(stretches[1]) == "stretch 2 (steps 4 to 8)"
    assert [each.line for each in chain] == [2, 4, 6]
    assert chain[1].end == len(b"".join(lines(folder)[:4]))
    assert milestones.read(folder / "nothing") == []


@pytest.mark.parametrize("changed", [0, 1, 2, 3])
def test_a_changed_line_breaks_the_next_milestone(folder, changed):
    content = lines(folder)
    content[changed] = content[changed].replace(b".0}", b".5}")
    write(folder, content)
    line = 2 if changed == 0 else 4 if changed < 3 else 6
    with pytest.raises(BrokenChain, match=rf"journal.jsonl: line {line}: the chain .* is broken"):
        milestones.read(folder)


@pytest.mark.parametrize("removed", [0, 1, 2, 3])
def test_a_removed_line_breaks_the_next_milestone(folder, removed):
    content = lines(folder)
    del content[removed]
    write(folder, content)
    with pytest.raises(BrokenChain, match="the chain of milestones is broken"):
        milestones.read(folder)


def test_milestones_in_another_order_are_refused_also_with_digests_made_anew(folder):
    content = lines(folder)
    (folder / "other").mkdir()
    journal = Journal(folder / "other", Position())
    for index in (2, 3, 0, 1):
        line = json.loads(content[index])
        state = line.get("milestone", {}).get("state")
        journal.append(line["step"], line["epoch"], line["metrics"], {}, state)
    journal.close()
    with pytest.raises(BrokenChain, match=r"line 4: its milestone, of step 4, follows .* step 8"):
        milestones.read(folder / "other")


def test_a_damaged_milestone_is_named(folder):
    content = lines(folder)
    content[3] = content[3].replace(b'"state"', b'"States"')
    write(folder, content)
    with pytest.raises(BrokenChain, match="line 4: its milestone is damaged"):
        milestones.read(folder)
