"""`minillm generate` as a script: python scripts/generate.py -p "Once upon a time"."""

import sys

from minillm.cli.main import main

if __name__ == "__main__":
    sys.exit(main(["generate", *sys.argv[1:]]))
