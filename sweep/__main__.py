"""`python -m kdsweep.sweep` is the command line, for where scripts are not on the path."""

from .cli import main

if __name__ == "__main__":
    main()
