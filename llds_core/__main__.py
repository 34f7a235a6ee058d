"""`python -m llds_core`."""

import sys

from llds_core.cli import main

if __name__ == "__main__":
    sys.exit(main())
