"""Deformable attention against its definition, place by place."""

import pytest
import torch

from smt.detection.deformable import DeformableAttention, sample

SHAPES = [(3, 5), (2, 2)]
PLACES = 3 * 5 + 2 * 2


def read(values, x, y):
    """Return values (H, W, D) at x and y, fractions of width and height, as the paper has it."""
    height, width = values.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5  # a value stands at the centre of its cell
    total = torch.zeros(values.shape[2], dtype=values.dtype)
    for i in (int(row.floor()), int(row.floor()) + 1):
        for j in (int(column.floor()), int(column.floor()) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * values[i, j]
    return total


def by_loop(values, shapes, places, weights):
    """Return what `sample` returns, one value at a time."""
    batch, queries, heads, levels, points, _ = places.shape
    rows = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total, first = 0, 0
                for level in range(levels):
                    height, width = shapes[level]
                    grid = values[b, first : first + height * width, h].view(height, width, -1)
                    first += height * width
                    for p in range(points):
                        x, y = places[b, q, h, level, p]
                        total = total + weights[b, q, h, level, p] * read(grid, x, y)
                rows.append(total)
    return torch.stack(rows).view(batch, queries, -1)


def random_case(*, queries=3, heads=2, channels=3, points=2, seed=0):
    torch.manual_seed(seed)
    sizes = (2, queries, heads, len(SHAPES), points)
    values = torch.randn(2, PLACES, heads, channels, dtype=torch.float64)
    places = torch.rand(*sizes, 2, dtype=torch.float64) * 1.6 - 0.3  # some of them outside
    weights = torch.randn(sizes, dtype=torch.float64)
    return [each.requires_grad_() for each in (values, places, weights)]


def test_sampling_and_its_gradients_are_those_of_a_loop():
    values, places, weights = random_case()
    assert (places < 0).any()
    assert (places > 1).any()
    ours = sample(values, SHAPES, places, weights)
    theirs = by_loop(values, SHAPES, places, weights)
    torch.testing.assert_close(ours, theirs)
    direction = torch.randn_like(ours)
    inputs = (values, places, weights)
    for mine, wanted in zip(
        torch.autograd.grad((ours * direction).sum(), inputs),
        torch.autograd.grad((theirs * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(mine, wanted)


def test_gradients_are_those_of_finite_differences():
    values, places, weights = random_case(queries=1, channels=2, points=1, seed=1)
    assert torch.autograd.gradcheck(lambda *each: sample(each[0], SHAPES, *each[1:]),
                                    (values, places, weights))  # fmt: skip


def test_the_centre_of_a_cell_is_its_value_and_the_corner_of_the_level_a_quarter_of_its_first():
    values = torch.arange(6.0).add(1).view(1, 6, 1, 1)  # 1 2 3 / 4 5 6
    places = torch.tensor([[2.5 / 3, 1.5 / 2], [0.0, 0.0], [1.0, 0.25], [-0.5, 0.5]])
    found = sample(values, [(2, 3)], places.view(1, 4, 1, 1, 1, 2), torch.ones(1, 4, 1, 1, 1))
    torch.testing.assert_close(found.flatten(), torch.tensor([6.0, 0.25, 1.5, 0.0]))


def module(channels=8, heads=2, points=3, seed=0):
    """Return an attention whose offsets and weights depend on the query."""
    torch.manual_seed(seed)
    attention = DeformableAttention(channels, heads=heads, levels=2, points=points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def module_by_loop(attention, queries, references, memory, padding):
    """Return the module's output, with every place worked out by itself."""
    heads, points = attention.heads, attention.points
    values = torch.where(padding[..., None], 0, attention.values(memory))
    values = values.view(*values.shape[:2], heads, -1)
    batch, count = queries.shape[:2]
    places = torch.zeros(batch, count, heads, 2, points, 2, dtype=torch.float64)
    weights = torch.zeros(batch, count, heads, 2, points, dtype=torch.float64)
    for b in range(batch):
        for q in range(count):
            offsets = attention.offsets(queries[b, q]).view(heads, 2, points, 2)
            scores = attention.weights(queries[b, q]).view(heads, 2 * points)
            for h in range(heads):
                exponents = scores[h].exp()
                weights[b, q, h] = (exponents / exponents.sum()).view(2, points)
                for level, (height, width) in enumerate(SHAPES):
                    for p in range(points):
                        dx, dy = offsets[h, level, p]
                        reference = references[b, q, level]
                        if len(reference) == 2:  # in cells of the level
                            shift = dx / width, dy / height
                        else:  # in halves of the box's sides, over the points
                            shift = (
                                dx * reference[2] * 0.5 / points,
                                dy * reference[3] * 0.5 / points,
                            )
                        places[b, q, h, level, p, 0] = reference[0] + shift[0]
                        places[b, q, h, level, p, 1] = reference[1] + shift[1]
    return attention.output(by_loop(values, SHAPES, places, weights))


@pytest.mark.parametrize("numbers", [2, 4], ids=["points", "boxes"])
def test_the_module_looks_around_its_references_and_not_at_padding(numbers):
    attention = module()
    queries, memory = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, PLACES))
    references = torch.rand(2, 3, 2, numbers, dtype=torch.float64)
    padding = torch.rand(2, PLACES) < 0.4
    found = attention(
        queries, references, memory,
        shapes=SHAPES, sides=torch.tensor([[5.0, 3.0], [2.0, 2.0]]), padding=padding,
    )  # fmt: skip
    wanted = module_by_loop(attention, queries, references, memory, padding)
    torch.testing.assert_close(found, wanted)


def test_what_stands_at_padded_places_changes_nothing():
    attention = module()
    queries, memory = (torch.randn(1, n, 8, dtype=torch.float64) for n in (4, PLACES))
    padding = torch.zeros(1, PLACES, dtype=torch.bool)
    padding[:, [2, 7, 16]] = True
    call = {"shapes": SHAPES, "sides": torch.tensor([[5, 3], [2, 2]]), "padding": padding}
    references = torch.rand(1, 4, 2, 2, dtype=torch.float64)
    before = attention(queries, references, memory, **call)
    memory[padding] += 100
    assert torch.equal(attention(queries, references, memory, **call), before)
    memory[~padding] += 100
    assert not torch.equal(attention(queries, references, memory, **call), before)


def test_it_starts_at_a_ring_of_places_with_equal_weights():
    attention = DeformableAttention(16, heads=8, levels=3, points=4)
    offsets, weights = attention.offsets(torch.randn(5, 16)), attention.weights(torch.randn(5, 16))
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    wanted = torch.tensor([
        [[[x * step, y * step] for step in (1, 2, 3, 4)] for _ in range(3)] for x, y in ring
    ]).float()  # fmt: skip
    for each in offsets:
        torch.testing.assert_close(each.view(8, 3, 4, 2), wanted)
    assert not weights.any()


def test_places_keep_float32_under_autocast():
    """On a level of 1 x 1024 neighbours are 1/1024 apart, which bfloat16 cannot tell near 1."""
    attention = DeformableAttention(2, heads=2, levels=1, points=1)
    for layer in (attention.values, attention.output):
        torch.nn.init.eye_(layer.weight)
    odd = torch.arange(1024).remainder(2).float()
    memory = torch.stack([odd, 2 * odd], dim=-1)[None]  # (1, 1024, 2)
    columns = torch.arange(900, 908)
    references = torch.stack([(columns + 0.5) / 1024, torch.full((8,), 0.5)], dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = attention(
            torch.randn(1, 8, 2),
            references.view(1, 8, 1, 2),
            memory,
            shapes=[(1, 1024)],
            sides=torch.tensor([[1024.0, 1.0]]),
            padding=torch.zeros(1, 1024, dtype=torch.bool),
        )
    there = columns.remainder(2)  # the two heads look one column further and one back
    wanted = torch.stack([1 - there, 2 * (1 - there)], dim=-1)[None].float()
    torch.testing.assert_close(found.float(), wanted, atol=1e-2, rtol=0)


def test_values_and_weights_may_be_less_precise_than_places():
    values, places, weights = (each.detach().float() for each in random_case())
    found = sample(values.bfloat16(), SHAPES, places, weights.bfloat16())
    assert found.dtype == torch.float32
    wanted = sample(values.bfloat16().float(), SHAPES, places, weights.bfloat16().float())
    assert torch.equal(found, wanted)
