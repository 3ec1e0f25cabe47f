"""The command line with the test-only methods registered: `python -m tests.methods.run_cli run …`."""

import tests.methods.extra  # noqa: F401
from hide_llava.cli import main

if __name__ == "__main__":
    main()
