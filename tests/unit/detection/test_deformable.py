"""Deformable attention against its definition, one sampling location at a time."""

import pytest
import torch

from smt.detection.deformable import DeformableAttention, sample

SHAPES = [(3, 5), (2, 2)]
LOCATIONS = 3 * 5 + 2 * 2


def interpolate(values, x, y):
    """Return values (H, W, D) at x and y, fractions of width and height, bilinearly."""
    height, width = values.shape[:2]
    column, row = x * width - 0.5, y * height - 0.5  # a value is at the centre of its cell
    total = torch.zeros(values.shape[2], dtype=values.dtype)
    for i in (int(row.floor()), int(row.floor()) + 1):
        for j in (int(column.floor()), int(column.floor()) + 1):
            if 0 <= i < height and 0 <= j < width:
                total = total + (1 - abs(row - i)) * (1 - abs(column - j)) * values[i, j]
    return total


def sample_by_loop(values, shapes, locations, weights):
    """Return the output of `sample`, computed one sampling location at a time."""
    batch, queries, heads, levels, points, _ = locations.shape
    outputs = []
    for b in range(batch):
        for q in range(queries):
            for h in range(heads):
                total, first = 0, 0
                for level in range(levels):
                    height, width = shapes[level]
                    grid = values[b, first : first + height * width, h].view(height, width, -1)
                    first += height * width
                    for p in range(points):
                        x, y = locations[b, q, h, level, p]
                        total = total + weights[b, q, h, level, p] * interpolate(grid, x, y)
                outputs.append(total)
    return torch.stack(outputs).view(batch, queries, -1)


def random_inputs(*, queries=3, heads=2, channels=3, points=2, seed=0):
    torch.manual_seed(seed)
    sizes = (2, queries, heads, len(SHAPES), points)
    values = torch.randn(2, LOCATIONS, heads, channels, dtype=torch.float64)
    locations = torch.rand(*sizes, 2, dtype=torch.float64) * 1.6 - 0.3  # some of them outside
    weights = torch.randn(sizes, dtype=torch.float64)
    return [tensor.requires_grad_() for tensor in (values, locations, weights)]


def test_sampling_and_its_gradients_equal_a_loop():
    values, locations, weights = random_inputs()
    assert (locations < 0).any()
    assert (locations > 1).any()
    actual = sample(values, SHAPES, locations, weights)
    expected = sample_by_loop(values, SHAPES, locations, weights)
    torch.testing.assert_close(actual, expected)
    direction = torch.randn_like(actual)
    inputs = (values, locations, weights)
    for gradient, expected_gradient in zip(
        torch.autograd.grad((actual * direction).sum(), inputs),
        torch.autograd.grad((expected * direction).sum(), inputs),
        strict=True,
    ):
        torch.testing.assert_close(gradient, expected_gradient)


def test_gradients_equal_finite_differences():
    values, locations, weights = random_inputs(queries=1, channels=2, points=1, seed=1)
    assert torch.autograd.gradcheck(lambda *inputs: sample(inputs[0], SHAPES, *inputs[1:]),
                                    (values, locations, weights))  # fmt: skip


def test_cell_centres_are_exact_and_values_outside_are_zero():
    values = torch.arange(6.0).add(1).view(1, 6, 1, 1)  # 1 2 3 / 4 5 6
    locations = torch.tensor([[2.5 / 3, 1.5 / 2], [0.0, 0.0], [1.0, 0.25], [-0.5, 0.5]])
    sampled = sample(values, [(2, 3)], locations.view(1, 4, 1, 1, 1, 2), torch.ones(1, 4, 1, 1, 1))
    torch.testing.assert_close(sampled.flatten(), torch.tensor([6.0, 0.25, 1.5, 0.0]))


def random_attention(channels=8, heads=2, points=3, seed=0):
    """Return an attention whose offsets and weights depend on the query."""
    torch.manual_seed(seed)
    attention = DeformableAttention(channels, heads=heads, levels=2, points=points).double()
    for parameter in attention.parameters():
        torch.nn.init.normal_(parameter, std=0.5)
    return attention


def attention_by_loop(attention, queries, references, memory, padding):
    """Return the module's output, computed one sampling location at a time."""
    heads, points = attention.heads, attention.points
    values = torch.where(padding[..., None], 0, attention.values(memory))
    values = values.view(*values.shape[:2], heads, -1)
    batch, count = queries.shape[:2]
    locations = torch.zeros(batch, count, heads, 2, points, 2, dtype=torch.float64)
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
                        if len(reference) == 2:  # offsets in cells of the level
                            shift = dx / width, dy / height
                        else:  # offsets in half sides of the box, divided by the points
                            shift = (
                                dx * reference[2] * 0.5 / points,
                                dy * reference[3] * 0.5 / points,
                            )
                        locations[b, q, h, level, p, 0] = reference[0] + shift[0]
                        locations[b, q, h, level, p, 1] = reference[1] + shift[1]
    return attention.output(sample_by_loop(values, SHAPES, locations, weights))


@pytest.mark.parametrize("coordinates", [2, 4], ids=["points", "boxes"])
def test_attention_samples_around_its_references_and_ignores_padding(coordinates):
    attention = random_attention()
    queries, memory = (torch.randn(2, n, 8, dtype=torch.float64) for n in (3, LOCATIONS))
    references = torch.rand(2, 3, 2, coordinates, dtype=torch.float64)
    padding = torch.rand(2, LOCATIONS) < 0.4
    output = attention(
        queries, references, memory,
        shapes=SHAPES, sides=torch.tensor([[5.0, 3.0], [2.0, 2.0]]), padding=padding,
    )  # fmt: skip
    expected = attention_by_loop(attention, queries, references, memory, padding)
    torch.testing.assert_close(output, expected)


def test_padded_values_do_not_change_the_output():
    attention = random_attention()
    queries, memory = (torch.randn(1, n, 8, dtype=torch.float64) for n in (4, LOCATIONS))
    padding = torch.zeros(1, LOCATIONS, dtype=torch.bool)
    padding[:, [2, 7, 16]] = True
    arguments = {"shapes": SHAPES, "sides": torch.tensor([[5, 3], [2, 2]]), "padding": padding}
    references = torch.rand(1, 4, 2, 2, dtype=torch.float64)
    before = attention(queries, references, memory, **arguments)
    memory[padding] += 100
    assert torch.equal(attention(queries, references, memory, **arguments), before)
    memory[~padding] += 100
    assert not torch.equal(attention(queries, references, memory, **arguments), before)


def test_initial_offsets_form_a_ring_and_weights_are_equal():
    attention = DeformableAttention(16, heads=8, levels=3, points=4)
    offsets, weights = attention.offsets(torch.randn(5, 16)), attention.weights(torch.randn(5, 16))
    ring = [(1, 0), (1, 1), (0, 1), (-1, 1), (-1, 0), (-1, -1), (0, -1), (1, -1)]
    expected = torch.tensor([
        [[[x * step, y * step] for step in (1, 2, 3, 4)] for _ in range(3)] for x, y in ring
    ]).float()  # fmt: skip
    for of_query in offsets:
        torch.testing.assert_close(of_query.view(8, 3, 4, 2), expected)
    assert not weights.any()


def test_sampling_locations_stay_float32_under_autocast():
    """Neighbours on a level of 1 x 1024 are 1/1024 apart, less than bfloat16 resolves near 1."""
    attention = DeformableAttention(2, heads=2, levels=1, points=1)
    for layer in (attention.values, attention.output):
        torch.nn.init.eye_(layer.weight)
    odd = torch.arange(1024).remainder(2).float()
    memory = torch.stack([odd, 2 * odd], dim=-1)[None]  # (1, 1024, 2)
    columns = torch.arange(900, 908)
    references = torch.stack([(columns + 0.5) / 1024, torch.full((8,), 0.5)], dim=-1)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        output = attention(
            torch.randn(1, 8, 2),
            references.view(1, 8, 1, 2),
            memory,
            shapes=[(1, 1024)],
            sides=torch.tensor([[1024.0, 1.0]]),
            padding=torch.zeros(1, 1024, dtype=torch.bool),
        )
    parity = columns.remainder(2)  # the heads sample the next and the previous column
    expected = torch.stack([1 - parity, 2 * (1 - parity)], dim=-1)[None].float()
    torch.testing.assert_close(output.float(), expected, atol=1e-2, rtol=0)


def test_values_and_weights_may_be_bfloat16():
    values, locations, weights = (tensor.detach().float() for tensor in random_inputs())
    output = sample(values.bfloat16(), SHAPES, locations, weights.bfloat16())
    assert output.dtype == torch.float32
    expected = sample(values.bfloat16().float(), SHAPES, locations, weights.bfloat16().float())
    assert torch.equal(output, expected)
