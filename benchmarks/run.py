"""Runs every benchmark in this folder, one after the other: ``make bench``, or ``make bench ARGS=core`` for one.

All figures are ratios against something in the same run, because machines differ and are noisy.
"""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

HERE = Path(__file__).parent
PARTS = ("bare_proxy", "fast_server", "run")
"""What is no benchmark, but a part of one."""


def main(names: list[str]) -> int:
    """Run those asked for, all when none is. The exit status is 1 when one failed."""
    found = {path.stem: path for path in sorted(HERE.glob("*.py")) if path.stem not in PARTS}
    unknown = [name for name in names if name not in found]
    if unknown:
        print(f"no benchmark {', '.join(unknown)}; there are: {', '.join(found)}", file=sys.stderr)
        return 2
    failed = 0
    for name in names or found:
        print(f"== {name}", flush=True)
        failed |= subprocess.run([sys.executable, str(found[name])], check=False).returncode != 0  # noqa: S603 - ours
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
