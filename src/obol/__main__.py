"""`python -m obol`: the same as the `obol` command."""

from obol.cli.main import main

if __name__ == "__main__":
    main()
