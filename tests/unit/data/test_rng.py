"""Randomness is a function of its key alone."""

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


def test_seeds_stay_what_they_are_in_any_process():
    # Were one of these to change, every run would silently be another one.
    assert derive_seed(0, "augment", 3, 12345) == AUGMENT_SEED
    code = "from smt.data.rng import derive_seed; print(derive_seed(0, 'augment', 3, 12345))"
    printed = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONHASHSEED": "7"}, capture_output=True, check=True
    ).stdout
    assert int(printed) == AUGMENT_SEED


def test_parts_are_kept_apart():
    keys = [("a", 1), ("a1",), ("a", "1"), ("a", 1, ""), (1, "a"), ("a, 1",), (), (0,), (0, 0)]
    assert len({derive_seed(*key) for key in keys}) == len(keys)


def test_numbers_of_numpy_count_as_pythons_and_fractions_do_not_pass():
    assert derive_seed("epoch", np.int64(3)) == derive_seed("epoch", 3)
    with pytest.raises(TypeError):
        derive_seed("epoch", 3.0)


def test_seeds_use_all_63_bits():
    seeds = [derive_seed("spread", i) for i in range(500)]
    assert all(0 <= seed < 2**63 for seed in seeds)
    for bit in range(63):
        assert 150 < sum(seed >> bit & 1 for seed in seeds) < 350


def test_the_same_key_draws_the_same_whatever_was_drawn_before():
    with seeded(1, "x"):
        first = draws()
    random.random(), np.random.randn(), torch.randn(5)
    with seeded(1, "x"):
        assert draws() == first
    with seeded(1, "y"):
        assert all(a != b for a, b in zip(draws(), first, strict=True))


def test_the_generators_end_as_they_were_even_after_an_error():
    # One number drawn in advance: gauss, randn and torch.randn each keep a second one at hand.
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


def test_numpy_and_torch_do_not_draw_the_same_numbers():
    with seeded("any"):
        numpy = np.random.randint(0, 2**32, 100, dtype=np.uint32).tolist()
        assert not set(numpy) & set(torch.randint(0, 2**32, (100,)).tolist())
