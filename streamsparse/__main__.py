"""`python -m streamsparse`: the same as the command `streamsparse`, of the interpreter that is meant."""

from streamsparse.cli import main

if __name__ == "__main__":
    main()
