"""`python -m raysegclean VERB` is the same command as `raysegclean VERB`."""

import sys

from raysegclean.interface.cli import main

__all__: list[str] = []

if __name__ == "__main__":
    sys.exit(main())
