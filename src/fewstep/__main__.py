"""`python -m fewstep`, the same as `fewstep`."""

import sys

from fewstep.cli import main

sys.exit(main())
