"""The worker as an ordinary program, to compare with."""

import sys

import worker

sys.exit(worker.main(sys.argv[1:]))
