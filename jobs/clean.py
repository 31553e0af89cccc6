"""Clean an archive: `python jobs/clean.py [clean.yaml] [--set key=value ...]`.

On a laptop this starts its own Ray. On a cluster:
`ray job submit --working-dir . -- python jobs/clean.py clean.yaml`. The same command again resumes.
"""

import os
import sys
from pathlib import Path

__all__: list[str] = []

ROOT = str(Path(__file__).resolve().parent.parent)
if ROOT not in sys.path:
    # A checkout that was not installed, here and in the workers that Ray starts.
    sys.path.insert(0, ROOT)
    os.environ["PYTHONPATH"] = os.pathsep.join(filter(None, [ROOT, os.environ.get("PYTHONPATH")]))

from raysegclean.__main__ import main  # noqa: E402  (the path comes first)

if __name__ == "__main__":
    sys.exit(main(["clean", *sys.argv[1:]]))
