"""Prints the shape of the package: packages, modules, lines, floors, circles, longest functions.

python tests/house.py
"""

from __future__ import annotations

import ast
from collections import defaultdict

from test_structure import FILES, MODULES, ORDER, PACKAGE, imported, name_of, place_of, places


def floors(arrows: dict[str, set[str]]) -> dict[str, int]:
    """How long the longest chain of imports below each is, itself counted; there are no circles (test_structure.py)."""
    depth: dict[str, int] = {}

    def of(name: str) -> int:
        if name not in depth:
            depth[name] = 1 + max((of(other) for other in arrows.get(name, ())), default=0)
        return depth[name]

    return {name: of(name) for name in arrows}


def code_lines(function: ast.FunctionDef) -> int:
    """Lines of a function without its docstring."""
    n = function.end_lineno - function.lineno + 1
    first = function.body[0]
    is_docstring = isinstance(first, ast.Expr) and isinstance(getattr(first, "value", None), ast.Constant)
    return n - (first.end_lineno - first.lineno + 1) if is_docstring else n


def main() -> None:
    arrows, functions, classes = defaultdict(set), [], []
    for path in MODULES:
        arrows[place_of(path)] |= places(path.read_text(encoding="utf-8")) - {place_of(path)}
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.FunctionDef):
                functions.append((code_lines(node), f"{name_of(path)}.{node.name}", len(node.args.args)))
            elif isinstance(node, ast.ClassDef):
                classes.append((node.end_lineno - node.lineno + 1, f"{name_of(path)}.{node.name}"))
    modules = {name_of(path): imported(path.read_text(encoding="utf-8")) for path in MODULES}
    lines = sum(len(path.read_text(encoding="utf-8").splitlines()) for path in FILES)
    print(f"{len(FILES)} files, {lines} lines, {len(list(PACKAGE.glob('*.py')))} modules at the top")
    n_floors = max(floors(arrows).values())
    print(f"{len(ORDER)} rooms, {n_floors} floors, {sum(map(len, arrows.values()))} arrows between rooms")
    between = sum(len(found & set(modules)) for found in modules.values())
    print(f"{between} arrows between modules, {max(floors(modules).values())} floors")
    for place in ORDER:
        inside = [path for path in MODULES if place_of(path) == place]
        print(f"  {place:14} {len(inside)} modules -> {', '.join(sorted(arrows[place], key=ORDER.index)) or 'nothing'}")
    print("longest functions: " + ", ".join(f"{name} {n}" for n, name, _ in sorted(functions, reverse=True)[:8]))
    print("longest classes: " + ", ".join(f"{name} {n}" for n, name in sorted(classes, reverse=True)[:5]))


if __name__ == "__main__":
    main()
