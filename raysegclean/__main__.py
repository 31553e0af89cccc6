"""`python -m raysegclean VERB` is the same command as `raysegclean VERB`.

The command line itself needs a package, and a Python without it is told so here.
"""

import sys
from collections.abc import Sequence

from raysegclean.dependencies import lacking

__all__ = ["main"]


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command line and return its exit code."""
    try:
        from raysegclean.interface.cli import main as run
    except ImportError as error:
        unfit = lacking(error)
        if unfit is None:
            raise
        sys.stderr.write(f"error: {unfit}\n")
        return unfit.exit_code
    return run(argv)


if __name__ == "__main__":
    sys.exit(main())
