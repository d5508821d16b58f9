"""What a command costs: `python -m specvit_benchmarks.timed COMMAND...` prints it as JSON, of all its processes.

It runs under a process of its own that is as small as can be: Linux counts the memory of whoever starts a process to
the peak of that process.
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time

UNIT = 1 if sys.platform == "darwin" else 1024
"""Bytes in one of `ru_maxrss`."""


def main() -> int:
    """Run the command; what it prints goes to standard error."""
    begun = time.perf_counter()
    code = subprocess.run(sys.argv[1:], stdout=sys.stderr, check=False).returncode
    wall, used = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
    cost = {"cpu_s": used.ru_utime + used.ru_stime, "wall_s": wall, "peak_rss_mb": used.ru_maxrss * UNIT / 1e6}
    print(json.dumps(cost))
    return code


if __name__ == "__main__":
    sys.exit(main())
