import sys

from mm1_hf.cli import main


sys.exit(main())
