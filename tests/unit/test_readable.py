"""How our code reads, as far as a test can tell (`docs/contributing.md`)."""

import ast
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
MOST_LINES = 60


def test_a_long_function_says_why_it_is() -> None:
    unexplained = []
    for package in ("schemas", "stream_app", "trainer", "deploy", "bench"):
        for path in sorted((ROOT / package).rglob("*.py")):
            text = path.read_text()
            lines = text.splitlines()
            for node in ast.walk(ast.parse(text)):
                if not isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                    continue
                first = min([node.lineno, *(decorator.lineno for decorator in node.decorator_list)])
                length = (node.end_lineno or node.lineno) - node.lineno + 1
                if length > MOST_LINES and not lines[first - 2].lstrip().startswith("# Long:"):
                    unexplained.append(f"{path.relative_to(ROOT)}: {node.name} has {length} lines")
    assert not unexplained, unexplained
