"""`python -m jobs COMMAND`: the command `tandem` where it is not installed, as in a Ray job that brings the code."""

import sys

from jobs.cli import main

sys.exit(main())
