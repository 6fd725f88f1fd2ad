"""`python -m servinglib`: the command line, where the environment's own commands are not on the path."""

from servinglib.cli import main

if __name__ == "__main__":
    main()
