"""``python -m noah_lightning`` is ``noah``."""

import sys

from noah_lightning.cli import main

sys.exit(main())
