"""What a package contains: entries with path, mode and content, and the archives that are made of them. Archives are reproducible:
sorted, with one time for all, owned by root, without names of the machine."""
import gzip, io, os, tarfile
from dataclasses import dataclass

# The compression of gzip by the caller's choice: `best` for a release, `fast` for tests.
GZIP_LEVELS = {"best": 9, "fast": 1}


@dataclass(frozen=True)
class Entry:
    """A file, or a folder or symbolic link if `kind` says so. `data` is the content, or a link's target. `owner` is uid and gid."""

    path: str
    data: bytes
    mode: int = 0o644
    kind: str = "file"
    owner: int = 0
    conffile: bool = False
    licence: bool = False


def with_folders(entries):
    """The entries with their parent folders, sorted by path: a folder stands before its content."""
    named = {entry.path: entry for entry in entries}
    for entry in entries:
        parent = os.path.dirname(entry.path)
        while parent and parent not in named:
            named[parent] = Entry(parent, b"", 0o755, "folder")
            parent = os.path.dirname(parent)
    return [named[path] for path in sorted(named, key=lambda path: path.split("/"))]


def tar(entries, epoch):
    """The bytes of a tar of entries and their folders."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for entry in with_folders(entries):
            info = tarfile.TarInfo(entry.path)
            info.mode, info.mtime, info.uid, info.gid = entry.mode, epoch, entry.owner, entry.owner
            if entry.kind == "folder":
                info.type = tarfile.DIRTYPE
                archive.addfile(info)
            elif entry.kind == "link":
                info.type, info.linkname = tarfile.SYMTYPE, entry.data.decode()
                archive.addfile(info)
            else:
                info.size = len(entry.data)
                archive.addfile(info, io.BytesIO(entry.data))
    return out.getvalue()


def gzipped(data, compress):
    """gzip without a name and without a time."""
    return gzip.compress(data, GZIP_LEVELS[compress], mtime=0)


def unfold(entries, folder, epoch):
    """Writes entries below an empty folder. All modes are set, whatever the caller's umask is."""
    os.chmod(folder, 0o755)
    for entry in with_folders(entries):
        path = os.path.join(folder, entry.path)
        if entry.kind == "folder":
            os.makedirs(path)
        elif entry.kind == "link":
            os.symlink(entry.data.decode(), path)
            continue
        else:
            with open(path, "wb") as file:
                file.write(entry.data)
        os.chmod(path, entry.mode)
    for root, folders, files in os.walk(folder, topdown=False):
        for name in folders + files + ["."]:
            os.utime(os.path.join(root, name), (epoch, epoch), follow_symlinks=False)
