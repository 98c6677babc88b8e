"""Formulas over numbers of the tables: comparisons of sums, products and the like."""

import ast
import math
import operator
import sys
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

_ARITHMETIC: Mapping[type[ast.operator], Callable[[float, float], float]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}
_FUNCTIONS: Mapping[str, Callable[..., float]] = {"min": min, "max": max, "abs": abs}
_SIGNS: Mapping[type[ast.cmpop], tuple[str, int]] = {
    ast.GtE: (">=", 1),
    ast.Gt: (">", 1),
    ast.LtE: ("<=", -1),
    ast.Lt: ("<", -1),
}

VALID = (
    "valid: comparisons (>=, >, <=, <) joined by `and`, of numbers, names such as "
    "imagenet1k_smt_tiny.top1, + - * /, min, max, abs"
)


@dataclass(frozen=True)
class Comparison:
    """One comparison of a formula."""

    left: ast.expr
    right: ast.expr
    sign: int
    """1 where the left side is to be greater, -1 where it is to be less."""
    strict: bool
    """Whether equal sides are not enough."""
    text: str

    def margin(self, values: Mapping[str, float]) -> float:
        """Return by how much the comparison holds, in the unit of its sides; below 0 it does not.

        `values` holds the number of each name. Decimal fractions lose their last bits.

        Raises:
            ArithmeticError: it divides by 0, or a result is too large; the message says which.
        """
        difference = _value(self.left, values) - _value(self.right, values)
        if not math.isfinite(difference):
            raise OverflowError(f"too large a result: {self.text}")
        return round(self.sign * difference, 9)

    def slope(self, name: str, values: Mapping[str, float]) -> float:
        """Return how the margin changes with a number, by a difference of 1e-3 of its unit."""
        step = 1e-3
        moved = {**values, name: values[name] + step}
        return (self.margin(moved) - self.margin(values)) / step

    def holds(self, values: Mapping[str, float]) -> bool:
        """Return whether the comparison is true of these numbers."""
        margin = self.margin(values)
        return margin > 0 or (margin == 0 and not self.strict)

    @cached_property
    def names(self) -> tuple[str, ...]:
        """Names of the numbers that it is about, each once."""
        return tuple(dict.fromkeys((*_names(self.left), *_names(self.right))))


def parse(text: str) -> tuple[Comparison, ...]:
    """Return the comparisons of a formula, all of which are to hold.

    Raises:
        ValueError: it is not a formula; the message says what is wrong, and what is valid.
    """
    try:
        tree = ast.parse(" ".join(text.split()), mode="eval").body
    except SyntaxError as error:
        raise ValueError(f"not a formula ({error.msg}); {VALID}") from None
    is_chain = isinstance(tree, ast.BoolOp) and isinstance(tree.op, ast.And)
    parts = tree.values if is_chain and isinstance(tree, ast.BoolOp) else [tree]
    return tuple(_comparison(part) for part in parts)


def _comparison(node: ast.expr) -> Comparison:
    if not isinstance(node, ast.Compare) or len(node.ops) != 1 or type(node.ops[0]) not in _SIGNS:
        raise ValueError(f"{ast.unparse(node)} is no comparison; {VALID}")
    for side in (node.left, node.comparators[0]):
        _require_valid(side)
    symbol, sign = _SIGNS[type(node.ops[0])]
    text = ast.unparse(node)
    comparison = Comparison(node.left, node.comparators[0], sign, symbol in (">", "<"), text)
    if not comparison.names:
        raise ValueError(f"{text} is about no number of the tables; {VALID}")
    return comparison


def _require_valid(node: ast.expr) -> None:
    match node:
        case ast.Constant(value=int() | float() as number) if not isinstance(number, bool):
            if number > sys.float_info.max:
                raise ValueError(f"a number above {sys.float_info.max:.2g}; {VALID}")
        case ast.Attribute() if _dotted(node):
            return
        case ast.BinOp(left=left, op=op, right=right) if type(op) in _ARITHMETIC:
            _require_valid(left)
            _require_valid(right)
            if isinstance(op, ast.Div) and not any(_names(right)) and not _value(right, {}):
                raise ValueError(f"{ast.unparse(node)} divides by 0; {VALID}")
        case ast.UnaryOp(op=ast.USub(), operand=operand):
            _require_valid(operand)
        case ast.Call(func=ast.Name(id=name), args=[_, *_] as arguments, keywords=[]) if (
            name in _FUNCTIONS and (name != "abs" or len(arguments) == 1)
        ):
            for argument in arguments:
                _require_valid(argument)
        case _:
            raise ValueError(f"{ast.unparse(node)} is not part of a formula; {VALID}")


def _dotted(node: ast.expr) -> str:
    """Return the dotted name that an expression is, or nothing."""
    if isinstance(node, ast.Name):
        return node.id
    prefix = _dotted(node.value) if isinstance(node, ast.Attribute) else ""
    return f"{prefix}.{node.attr}" if prefix and isinstance(node, ast.Attribute) else ""


def _names(node: ast.expr) -> Iterator[str]:
    if isinstance(node, ast.Attribute):
        yield _dotted(node)
        return
    for child in ast.iter_child_nodes(node):
        if isinstance(child, ast.expr):
            yield from _names(child)


def _value(node: ast.expr, values: Mapping[str, float]) -> float:
    match node:
        case ast.Constant(value=int() | float() as number):
            return float(number)
        case ast.BinOp(left=left, op=op, right=right):
            operands = _value(left, values), _value(right, values)
            if isinstance(op, ast.Div) and not operands[1]:
                raise ZeroDivisionError(f"division by 0: {ast.unparse(node)}")
            return _ARITHMETIC[type(op)](*operands)
        case ast.UnaryOp(operand=operand):
            return -_value(operand, values)
        case ast.Call(func=ast.Name(id=name), args=arguments):
            numbers = [_value(argument, values) for argument in arguments]
            return _FUNCTIONS[name](*numbers) if len(numbers) > 1 or name == "abs" else numbers[0]
    return values[_dotted(node)]
