"""`python run_matrix.py COMMAND` is the console script `finepruner`."""

from finepruner_lmms.cli import main

if __name__ == "__main__":
    main()
