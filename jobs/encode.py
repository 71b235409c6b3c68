"""`python -m jobs.encode`: what `ray job submit` runs."""

import sys

from jobs.commands.encode import main

if __name__ == "__main__":
    sys.exit(main())
