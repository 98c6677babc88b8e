"""Random numbers are a function of their key only."""

import random
import subprocess
import sys

import numpy as np
import pytest
import torch

from smt.data.rng import derive_seed, preserve_rng_state, reseed, seeded

AUGMENT_SEED = 5475904065603730975


def draws():
    return (
        [random.random() for _ in range(3)],
        random.gauss(0, 1),
        np.random.random(3).tolist(),
        np.random.randn(),
        torch.rand(3).tolist(),
        torch.randn(1).item(),
    )


def test_seeds_are_the_same_in_every_process():
    # If this changed, runs would silently have other random numbers.
    assert derive_seed(0, "augment", 3, 12345) == AUGMENT_SEED
    code = "from smt.data.rng import derive_seed; print(derive_seed(0, 'augment', 3, 12345))"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, check=True
    ).stdout
    assert int(printed) == AUGMENT_SEED


def test_different_keys_have_different_seeds():
    keys = [("a", 1), ("a1",), ("a", "1"), ("a", 1, ""), (1, "a"), ("a, 1",), (), (0,), (0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_numpy_integers_equal_python_integers_and_floats_are_refused():
    assert derive_seed("epoch", np.int64(3)) == derive_seed("epoch", 3)
    with pytest.raises(TypeError):
        derive_seed("epoch", 3.0)


def test_seeds_use_all_63_bits():
    seeds = [derive_seed("spread", i) for i in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 150 < sum(seed >> bit & 1 for seed in seeds) < 350


def test_the_same_key_has_the_same_numbers_after_any_other_draws():
    with seeded(1, "x"):
        first = draws()
    random.random(), np.random.randn(), torch.randn(5)
    with seeded(1, "x"):
        assert draws() == first
    with seeded(1, "y"):
        assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_generators_are_restored_even_after_an_error():
    # One draw in advance: gauss, randn and torch.randn compute two numbers and cache one.
    reseed("outside")
    random.gauss(0, 1), np.random.randn(), torch.randn(1)
    expected = draws()
    reseed("outside")
    random.gauss(0, 1), np.random.randn(), torch.randn(1)
    with pytest.raises(ZeroDivisionError), seeded("inside"):
        draws()
        raise ZeroDivisionError
    with preserve_rng_state():
        reseed("inside")
        random.gauss(0, 1), np.random.randn(), torch.randn(3)
    assert draws() == expected


def test_numpy_and_torch_have_different_numbers():
    with seeded("any"):
        numpy = np.random.randint(0, 2**32, 100, dtype=np.uint32).tolist()
        assert not set(numpy) & set(torch.randint(0, 2**32, (100,)).tolist())
