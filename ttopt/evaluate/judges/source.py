"""Texts that are read out of the source of a benchmark's own script, which is never run."""

from __future__ import annotations

import ast
from collections.abc import Mapping

from ttopt.errors import UserError, brief


def parsed(source: str, where: object) -> ast.Module:
    """A script's syntax tree. Raises UserError."""
    try:
        return ast.parse(source)
    except (SyntaxError, ValueError, RecursionError, MemoryError) as error:
        raise UserError(f"{where} is no Python ({brief(error)}); fetch the benchmark's code again") from error


def text_of(node: ast.AST, known: Mapping[str, str]) -> str | None:
    """A text made of constants and known texts; None for anything else."""
    if isinstance(node, ast.Constant):
        return node.value if isinstance(node.value, str) else None
    if isinstance(node, ast.Name):
        return known.get(node.id)
    if isinstance(node, ast.FormattedValue):
        return text_of(node.value, known) if node.conversion == -1 and node.format_spec is None else None
    if isinstance(node, ast.JoinedStr):
        parts = [text_of(value, known) for value in node.values]
        return None if None in parts else "".join(part or "" for part in parts)
    if isinstance(node, ast.BinOp) and isinstance(node.op, ast.Add):
        left, right = text_of(node.left, known), text_of(node.right, known)
        return None if left is None or right is None else left + right
    return None
