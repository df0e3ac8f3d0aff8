"""``python -m gleitzeit_core.cli``."""

from __future__ import annotations

import sys

from gleitzeit_core.cli import main

sys.exit(main())
