"""``python -m ttopt``"""

from __future__ import annotations

import sys

from ttopt.cli import main

if __name__ == "__main__":
    sys.exit(main())
