"""``python -m ttopt``"""

from __future__ import annotations

import os
import sys

from ttopt.cli import main

# Read when torch is loaded, which is later. OpenMP threads that spin while they wait for one whose core is taken by
# another program made a run several times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

if __name__ == "__main__":
    sys.exit(main())
