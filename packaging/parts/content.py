"""The files of the packages: those of the tarball, and those below / of .deb and .rpm."""
import os, tempfile

from entries import Entry, gzipped
from program import output

UNITS = ("coracle.service", "coracle-server.service", "coracle-node.service")
ROLES = ("up", "server", "node")
COMPLETIONS = {"bash": "coracle", "zsh": "_coracle", "fish": "coracle.fish"}


def read(*path):
    with open(os.path.join(*path), "rb") as file:
        return file.read()


def manuals(program):
    """The manual pages by file name."""
    with tempfile.TemporaryDirectory() as folder:
        output(program.path, "man", folder)
        return {name: read(folder, name) for name in sorted(os.listdir(folder))}


def completions(program):
    return {shell: output(program.path, "completion", shell) for shell in COMPLETIONS}


class Content:
    """Everything that the packages have in common."""

    def __init__(self, root, program, bom, third_party):
        self.program, self.bom, self.third_party = program, bom, third_party
        self.manuals, self.completions = manuals(program), completions(program)
        self.licence, self.readme, self.changelog = (read(root, name) for name in ("LICENSE", "README.md", "CHANGELOG.md"))
        here = os.path.join(root, "packaging")
        self.units = {name: read(here, "systemd", name) for name in UNITS}
        self.sysusers = read(here, "systemd", "sysusers.conf")
        self.configs = {f"{role}{ending}": read(here, "etc", f"{role}{ending}") for role in ROLES for ending in (".yaml", ".env")}

    def tarball(self, name):
        """The entries of the tarball, below one folder."""
        files = [
            Entry("bin/coracle", self.program.data, 0o755),
            Entry("LICENSE", self.licence), Entry("THIRD-PARTY-LICENSES", self.third_party),
            Entry("README.md", self.readme), Entry("CHANGELOG.md", self.changelog), Entry("coracle.cdx.json", self.bom),
            *[Entry(f"share/man/man1/{page}", text) for page, text in self.manuals.items()],
            *[Entry(f"share/completions/{COMPLETIONS[shell]}", text) for shell, text in self.completions.items()],
            *[Entry(f"share/systemd/{unit}", text) for unit, text in self.units.items()],
            Entry("share/systemd/sysusers.conf", self.sysusers),
            *[Entry(f"share/config/{config}", text) for config, text in self.configs.items()],
        ]
        return [Entry(f"{name}/{file.path}", file.data, file.mode) for file in files]

    def system(self, zsh, licence):
        """The entries below /. `zsh` is the folder of completions for packages; `licence` is the path of the licence file."""
        docs = "usr/share/doc/coracle"
        zipped = lambda data: gzipped(data, "best")
        folders = {"bash": "usr/share/bash-completion/completions", "zsh": zsh, "fish": "usr/share/fish/vendor_completions.d"}
        return [
            Entry("usr/bin/coracle", self.program.data, 0o755),
            *[Entry(f"usr/share/man/man1/{page}.gz", zipped(text)) for page, text in self.manuals.items()],
            *[Entry(f"{folders[shell]}/{COMPLETIONS[shell]}", text) for shell, text in self.completions.items()],
            *[Entry(f"usr/lib/systemd/system/{unit}", text) for unit, text in self.units.items()],
            Entry("usr/lib/sysusers.d/coracle.conf", self.sysusers),
            # Tokens and passwords are in the .env files, which only systemd reads, as root.
            *[Entry(f"etc/coracle/{config}", text, 0o600 if config.endswith(".env") else 0o644, conffile=True)
              for config, text in self.configs.items()],
            Entry(licence, self.licence, licence=True),
            Entry(f"{docs}/THIRD-PARTY-LICENSES.gz", zipped(self.third_party)),
            Entry(f"{docs}/README.md", self.readme), Entry(f"{docs}/changelog.gz", zipped(self.changelog)),
            Entry(f"{docs}/coracle.cdx.json.gz", zipped(self.bom)),
        ]
