"""A command, for Jobs and CronJobs: it greets the names in its arguments."""
import sys

from componentize_py_types import Err
from wit_world import exports
from wit_world.imports import environment

from greetings import greetings


class Run(exports.Run):
    def run(self) -> None:
        try:
            sys.stdout.write(greetings(environment.get_arguments()[1:]))
        except ValueError as error:
            print(f"{{name}}: {error}", file=sys.stderr)
            raise Err(None)
