"""`python -m minillm_repl` is `minillm-repl`."""

import sys

from minillm_repl.cli import main

sys.exit(main())
