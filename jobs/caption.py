"""`python -m jobs.caption`: what `ray job submit` runs."""

import sys

from jobs.commands.caption import main

if __name__ == "__main__":
    sys.exit(main())
