"""`python -m service.cli`, for where the `allo` script is not on the path."""

import sys

from service.cli import main

sys.exit(main())
