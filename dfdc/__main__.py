"""`python -m dfdc` is the command `dfdc`."""

import sys

from dfdc.cli import main

if __name__ == "__main__":
    sys.exit(main())
