"""Nothing is fetched in tests: a name that is no folder fails at once, also where `make` has not said so."""

import os


os.environ.setdefault("HF_HUB_OFFLINE", "1")
