"""Formulas over numbers of the tables."""

import pytest

from smt.config.formula import parse

A, B = "imagenet1k_smt_tiny.top1", "mask_rcnn.smt_base.params_m"


def test_names_are_dotted_and_come_once():
    (comparison,) = parse(f"{A} - {B} >= 2 * {A}")
    assert comparison.names == (A, B)


@pytest.mark.parametrize(
    ("text", "margin", "holds"),
    [
        (f"{A} >= 82.2", 0.0, True),
        (f"{A} > 82.2", 0.0, False),
        (f"{A} <= 82.2", 0.0, True),
        (f"{A} < 82.2", 0.0, False),
        (f"{A} - {B} >= 50.1", 0.1, True),
        (f"-{A} + 2 * {B} / 4 < 0", 66.2, True),
        (f"abs({B} - 32.5) <= 0.4", -0.1, False),
        (f"max({A}, {B}) > min({A}, {B}, 40)", 50.2, True),
    ],
)
def test_margin_is_by_how_much_it_holds(text, margin, holds):
    (comparison,) = parse(text)
    values = {A: 82.2, B: 32.0}
    assert comparison.margin(values) == pytest.approx(margin, abs=1e-9)
    assert comparison.holds(values) is holds


def test_decimal_fractions_compare_as_they_are_printed():
    (comparison,) = parse(f"{A} - {B} >= 1.3")
    assert 49.8 - 48.5 < 1.3  # in binary
    assert comparison.holds({A: 49.8, B: 48.5})


@pytest.mark.parametrize(
    ("text", "message"),
    [
        (f"{A} / ({A} - 82.2) > 1", f"division by 0: {A} / ({A} - 82.2)"),
        (f"{A} * 1e308 > 1", f"too large a result: {A} * 1e+308 > 1"),
        (f"{A} * 1e308 - {A} * 1e308 > 1", "too large a result: "),
    ],
)
def test_a_formula_without_a_value_says_where(text, message):
    (comparison,) = parse(text)
    with pytest.raises(ArithmeticError) as refused:
        comparison.holds({A: 82.2})
    assert str(refused.value).startswith(message)
    assert comparison.names == (A,)


def test_comparisons_are_joined_by_and():
    first, second = parse(f"{A} > 1 and\n  {B} < 2")
    assert (first.text, second.text) == (f"{A} > 1", f"{B} < 2")


@pytest.mark.parametrize(
    "text",
    ["", "1 +", A, f"{A} >= 1 or {B} < 2", f"1 < {A} < 2", f"{A} == 1", "top1 > 1", f"{A} > True",
     f"{A} > 'a'", f"open({A}) > 1", f"{A}.real() > 1", f"abs({A}, 1) > 1", f"min() < {A}",
     "1 >= 82.2", f"{A} > 1 and 2 > 1", f"{A} >= 1e999", f"{A} < {10**400}", f"{A} / 0 > 1",
     f"{A} / (3 - 1.5 * 2) > 1", f"1 / (1 / (0 * 2)) > {A}",
     f"{A} ** 2 > 1", f"[{A}][0] > 1", f"min(*{A}) > 1", f"max({A}, key=abs) > 1"],
)  # fmt: skip
def test_what_is_no_formula_is_refused_with_what_is_valid(text):
    with pytest.raises(ValueError, match="valid: comparisons") as refused:
        parse(text)
    assert "\n" not in str(refused.value)
