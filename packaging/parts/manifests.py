"""The formula for Homebrew, and the manifests for winget: templates with the version, the address and the checksum of an archive."""
import glob, hashlib, os, re, zipfile

BREW_ARCHITECTURES = {"x86_64": "x86_64", "aarch64": "arm64"}
PLACEHOLDER = re.compile(rb"@[A-Z0-9_]+@")


def fill(path, values):
    with open(path, "rb") as file:
        text = file.read()
    for name, value in values.items():
        text = text.replace(f"@{name}@".encode(), value.encode())
    rest = PLACEHOLDER.search(text)
    if rest:
        raise SystemExit(f"packaging/build: {path} has {rest[0].decode()}, which no value fills")
    return text


def sha256(path):
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def formula(root, content, out, url):
    """Writes coracle.rb for the tarball in the same folder."""
    program = content.program
    tarball = os.path.join(out, f"coracle-{program.version}-linux-{program.names['linux']}.tar.gz")
    if not os.path.exists(tarball):
        raise SystemExit("packaging/build: the formula names the tarball: make both, --only tarball,homebrew")
    values = {"VERSION": program.version, "PROGRAM_VERSION": program.own_version, "URL": url, "ARCH": program.names["linux"],
              "BREW_ARCH": BREW_ARCHITECTURES[program.names["linux"]], "SHA256": sha256(tarball)}
    with open(os.path.join(out, "coracle.rb"), "wb") as file:
        file.write(fill(os.path.join(root, "packaging/templates/homebrew/coracle.rb"), values))
    return "coracle.rb"


def winget(root, content, out, url, archive):
    """Writes the manifests for a zip with the program for Windows, which this machine can't build."""
    try:
        with zipfile.ZipFile(archive) as files:
            if "coracle.exe" not in files.namelist():
                raise SystemExit(f"packaging/build: --windows-zip {archive}: it has no coracle.exe at its top")
    except (OSError, zipfile.BadZipFile) as error:
        raise SystemExit(f"packaging/build: --windows-zip {archive}: {error}") from None
    values = {"VERSION": content.program.version, "URL": url, "FILE": os.path.basename(archive), "SHA256": sha256(archive).upper()}
    names = []
    for template in sorted(glob.glob(os.path.join(glob.escape(root), "packaging/templates/winget/*.yaml"))):
        names.append(f"winget/{os.path.basename(template)}")
        os.makedirs(os.path.join(out, "winget"), exist_ok=True)
        with open(os.path.join(out, names[-1]), "wb") as file:
            file.write(fill(template, values))
    return names
