"""A plugin: the functions of wit/plugin.wit. The host calls each in an instance of its own."""
from typing import Optional

import wit_world
from componentize_py_types import Err
from wit_world import Card, Language

from cards import write_text


class WitWorld(wit_world.WitWorld):
    def greet(self, name: str) -> str:
        return f"hello {name}"

    def write_card(self, name: str, language: Optional[Language]) -> Card:
        if not name:
            raise Err("the name is empty")
        text, letters = write_text(name, (language or Language.ENGLISH).name.lower())
        return Card(text, letters)
