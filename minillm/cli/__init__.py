"""The command line: generated text on stdout, everything else on stderr; exit codes as in `errors.py`."""
