"""`python -m tandem_jobs COMMAND`: the command `tandem` where it is not installed, such as in a Ray job."""

import sys

from tandem_jobs.cli import main

sys.exit(main())
