"""`python -m peftcli`: the same program as `peftcli`."""

from __future__ import annotations

import sys

from peftcli.cli.app import main

if __name__ == "__main__":
    sys.exit(main())
