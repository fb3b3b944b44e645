"""The licence texts of other people's crates in the program, as one file: each text once, under the crates that have it."""
import os, re

NAMES = re.compile(r"(?i)^(licen[cs]e|copying|copyright|notice|unlicense)")
RULE = "=" * 100
HEAD = """Coracle contains the libraries below, and Rust's standard library (MIT OR Apache-2.0). Coracle's own licence is in LICENSE.
Each text stands once, below the libraries whose packages contain it. A library that offers a choice of licences may have several texts.
"""


def texts(crate):
    """The licence files of a crate's package, also those in a folder such as LICENSES."""
    found = []
    for entry in sorted(os.scandir(crate.folder), key=lambda entry: entry.name):
        if not NAMES.match(entry.name):
            continue
        paths = [entry.path] if entry.is_file() else [inner.path for inner in sorted(os.scandir(entry.path), key=lambda inner: inner.name)]
        for path in paths:
            if os.path.isfile(path) and not path.endswith((".rs", ".toml", ".py")):
                with open(path, encoding="utf-8", errors="replace") as file:
                    found.append(file.read())
    return found


def options(crate):
    """The single licences that an expression offers a choice of; an expression with AND is one."""
    return [crate.licence] if " AND " in crate.licence else crate.licence.split(" OR ")


def substitute(crate, others):
    """The text for a crate whose package has none: that of a crate of the same repository, else of one with just a licence that the crate
    offers. Such a text has another crate's copyright line, so the crate's authors stand beside it."""
    repository = crate.repository.split("/tree/")[0].removesuffix(".git")
    same = [other for other in others if repository and other.repository.startswith(repository) and other.licence == crate.licence]
    single = [other for option in options(crate) for other in others if other.licence == option]
    for other in same + single:
        return texts(other)
    raise SystemExit(f"packaging/build: {crate.name} {crate.version} has no licence file, and no other crate has just {crate.licence}: "
                     "add its text to packaging/parts/licences.py")


def document(crates):
    """The file for crates of others, in any order."""
    crates = sorted(crates, key=lambda crate: crate.key)
    with_texts = [crate for crate in crates if texts(crate)]
    holders = {}
    for crate in crates:
        own = texts(crate)
        label = f"{crate.name} {crate.version} ({crate.licence})"
        if not own:
            authors = f"; {', '.join(crate.authors)}" if crate.authors else ""
            label += f" - its package has no licence file{authors}"
            own = substitute(crate, with_texts)
        for text in own:
            # Packages wrap and end the same text differently.
            holders.setdefault(" ".join(text.split()), (text, []))[1].append(label)
    parts = [HEAD]
    for text, labels in sorted(holders.values(), key=lambda row: row[1]):
        parts.append("\n".join([RULE, *sorted(set(labels)), RULE, "", text.strip("\n"), ""]))
    return "\n".join(parts).encode()
