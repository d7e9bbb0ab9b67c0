"""Which `raise UserError` of the package no test reaches.

    python -m tests.unreached_errors [ARGUMENTS OF PYTEST]      e.g. -n 2 -m ""

Runs the tests and prints the places, one a line; the status is 1 if there are any. What only a process reaches that a
test starts in an environment of its own is not seen.
"""

import ast
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "dinov3seg_jax"
RECORDER = """
import os, sys
try:
    from dinov3seg_jax.errors import UserError
except ImportError:
    pass
else:
    def record(self, *arguments, _init=UserError.__init__):
        _init(self, *arguments)
        frame = sys._getframe(1)
        try:
            with open(os.path.join(os.environ["ERRORS_SEEN"], str(os.getpid())), "a") as file:
                file.write(f"{frame.f_code.co_filename}:{frame.f_lineno}\\n")
        except OSError:  # some tests let no file grow
            pass

    UserError.__init__ = record
"""


def main() -> int:
    """Run pytest with a recorder in it and its children."""
    with tempfile.TemporaryDirectory() as folder:
        seen = Path(folder, "seen")
        seen.mkdir()
        Path(folder, "sitecustomize.py").write_text(RECORDER)
        environment = os.environ | {"PYTHONPATH": f"{folder}{os.pathsep}{ROOT}", "ERRORS_SEEN": str(seen)}
        subprocess.run([sys.executable, "-m", "pytest", "-q", *sys.argv[1:]], cwd=ROOT, env=environment, check=False)
        reached = {line for file in seen.iterdir() for line in file.read_text().splitlines()}
    missing = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sorted(PACKAGE.rglob("*.py"))
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if _is_user_error(node) and not reached & {f"{path}:{line}" for line in range(node.lineno, node.end_lineno + 1)}
    ]
    print(*missing, f"{len(missing)} not reached", sep="\n")
    return bool(missing)


def _is_user_error(node: ast.AST) -> bool:
    call = node.exc if isinstance(node, ast.Raise) else None
    return isinstance(call, ast.Call) and isinstance(call.func, ast.Name) and call.func.id == "UserError"


if __name__ == "__main__":
    sys.exit(main())
