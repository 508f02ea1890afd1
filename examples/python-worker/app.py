"""The worker as a component: wasi:cli/run is its entry point."""

import sys

from wit_world import exports

import worker


class Run(exports.Run):
    def run(self) -> None:
        sys.exit(worker.main(sys.argv[1:]))
