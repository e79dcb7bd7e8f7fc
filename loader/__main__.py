"""Run the command line: `python -m loader`."""

from loader.cli import main

raise SystemExit(main())
