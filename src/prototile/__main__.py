"""`python -m prototile`."""

import sys

from prototile.cli import main

if __name__ == "__main__":
    sys.exit(main())
