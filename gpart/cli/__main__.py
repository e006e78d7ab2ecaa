"""``python -m gpart.cli``."""

import sys

from gpart.cli.main import main

if __name__ == "__main__":
    sys.exit(main())
