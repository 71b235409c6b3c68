"""`python -m jobs.answer`: what `ray job submit` runs."""

import sys

from jobs.commands.answer import main

if __name__ == "__main__":
    sys.exit(main())
