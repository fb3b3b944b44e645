"""The component: the scheduler plugin of `plugin.py`."""
from wit_world import exports


class Plugin(exports.Plugin):
    pass
