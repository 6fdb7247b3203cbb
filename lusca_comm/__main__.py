"""``python -m lusca_comm``: the command ``lusca-comm``."""

import sys

from .cli import main

if __name__ == "__main__":
    sys.exit(main())
