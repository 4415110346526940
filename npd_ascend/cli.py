"""Entry point of the ``npd`` command; the commands themselves are in ``commands.py``.

Nothing is imported here before Ctrl-C is taken care of: importing takes most of the first second.
"""

import os

from npd_ascend import interrupt


def main() -> None:
    """Runs the command line: user errors become one line and exit code 2, Ctrl-C one line and exit code 130."""
    interrupt.end_at_once()
    # Else pydantic looks for plugins in the metadata of every installed package.
    os.environ.setdefault("PYDANTIC_DISABLE_PLUGINS", "__all__")
    from npd_ascend.commands import run_command

    run_command()


if __name__ == "__main__":
    main()
