"""`python -m tandem_jobs COMMAND`: the command `tandem` where that is not installed, as in a Ray job."""

import sys

from tandem_jobs.cli import main

sys.exit(main())
