"""Entry point of ``python -m noah_lightning``, the same as ``noah``."""

import sys

from noah_lightning.cli import main

sys.exit(main())
