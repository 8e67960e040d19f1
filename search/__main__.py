"""`python -m search`: the `paretobert` command."""

from search.cli import main

if __name__ == "__main__":
    main()
