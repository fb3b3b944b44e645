"""The texts of cards. This file imports nothing of WASI, so that tests run without it."""

HELLOS = {"english": "hello", "french": "bonjour", "german": "hallo", "spanish": "hola"}


def write_text(name: str, language: str) -> tuple[str, int]:
    """A card's text and the number of its letters."""
    text = f"{HELLOS[language]} {name}"
    return text, sum(letter.isalpha() for letter in text)
