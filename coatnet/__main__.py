"""`python -m coatnet`: the command by this interpreter, whatever the PATH says."""

from coatnet.cli import main

if __name__ == "__main__":
    main()
