"""The command's output. This file imports nothing of WASI, so that tests run without it."""


def greetings(names: list[str]) -> str:
    """One line for each name."""
    if not names:
        return "hello from {{name}}\n"
    if "" in names:
        raise ValueError(f"name {names.index('') + 1} is empty")
    return "".join(f"hello {name}\n" for name in names)
