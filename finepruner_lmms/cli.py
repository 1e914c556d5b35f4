"""The command line: `python run_matrix.py COMMAND`, or `finepruner COMMAND`.

Exit status: 0 done, 1 some cells failed (all others are kept) or the machine did (a full disk), 2 the request itself
is wrong and nothing was run, 130 stopped from outside (what is done is kept), 141 nobody reads the output any more.
The commands are in `finepruner_lmms.commands`.
"""

from __future__ import annotations

import json
import os
import sys
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from finepruner_lmms.commands.app import app

__all__ = ["app", "main"]


def main() -> None:
    """The console script."""
    # no plug-in of pydantic has a say in our records; looking for one reads what every installed package says of itself
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "1")
    try:
        from finepruner_lmms.commands.app import app
        from finepruner_lmms.output import make_streams_robust

        make_streams_robust()
        os.environ.setdefault(
            "FINEPRUNER_COMMAND", json.dumps(sys.orig_argv)
        )  # for `matrix.provenance`, in workers too
        app()
    except KeyboardInterrupt:  # before or after a command, which say more themselves
        sys.stderr.write("stopped\n")
        sys.exit(130)


def __getattr__(name: str) -> Any:
    """`app`, loaded when it is asked for: Ctrl-C is looked after before anything that takes time is imported."""
    if name != "app":
        raise AttributeError(name)
    from finepruner_lmms.commands.app import app

    return app


if __name__ == "__main__":
    main()
