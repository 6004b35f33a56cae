import sys

from mm1_command import main


sys.exit(main())
