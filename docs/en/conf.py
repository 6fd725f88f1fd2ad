"""The site in one language; everything else stands in `docs/site_settings.py`."""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent.parent))

from site_settings import settings

globals().update(settings("en"))
