"""``python -m clipconformity``."""

import sys

from clipconformity.cli import main

sys.exit(main())
