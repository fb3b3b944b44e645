"""The package for Fedora, openSUSE, RHEL and their derivatives, by rpmbuild. Needs no root."""
import glob, os, shutil, subprocess, tempfile

from entries import unfold, with_folders

REVISION = 1
ZSH = "usr/share/zsh/site-functions"
LICENCE = "usr/share/licenses/coracle/LICENSE"
COMPRESSION = {"best": "w19.zstdio", "fast": "w1.gzdio"}
# Folders that are the package's own; all others are the system's.
OWN = {"etc/coracle", "usr/share/doc/coracle", "usr/share/licenses/coracle"}


def row(entry):
    """An entry's line of %files."""
    if entry.kind == "folder":
        return f"%dir %attr({entry.mode:o},root,root) /{entry.path}"
    kind = "%config(noreplace) " if entry.conffile else "%license " if entry.licence else ""
    return f"{kind}%attr({entry.mode:o},root,root) /{entry.path}"


def build(root, content, out, compress):
    """Writes the package, and returns its name."""
    program = content.program
    entries = with_folders(content.system(ZSH, LICENCE))
    rows = [row(entry) for entry in entries if entry.kind != "folder" or entry.path in OWN]
    with tempfile.TemporaryDirectory() as folder:
        staging, top = os.path.join(folder, "staging"), os.path.join(folder, "top")
        os.mkdir(staging)
        unfold(entries, staging, program.epoch)
        with open(os.path.join(root, "packaging/rpm/coracle.spec.in"), encoding="utf-8") as file:
            spec = file.read()
        for name, value in (("STAGING", staging), ("VERSION", program.version), ("REVISION", str(REVISION)),
                            ("ARCHITECTURE", program.names["rpm"]), ("FILES", "\n".join(rows))):
            spec = spec.replace(f"@{name}@", value)
        path = os.path.join(folder, "coracle.spec")
        with open(path, "w", encoding="utf-8") as file:
            file.write(spec)
        defines = {
            "_topdir": top, "_binary_payload": COMPRESSION[compress], "_buildhost": "localhost", "use_source_date_epoch_as_buildtime": "1",
            "clamp_mtime_to_source_date_epoch": "1", "source_date_epoch_from_changelog": "0",
            # The files are complete: no stripping, no debug package, no compression of manuals.
            "debug_package": "%{nil}", "__os_install_post": "%{nil}", "_build_id_links": "none",
            # systemctl in scriptlets is systemd's, which is required already.
            "_dbpath": os.path.join(folder, "db"),
        }
        arguments = [part for name, value in defines.items() for part in ("--define", f"{name} {value}")]
        done = subprocess.run(["rpmbuild", "-bb", "--quiet", "--target", program.names["rpm"], *arguments, path], cwd=folder,
                              env={**os.environ, "SOURCE_DATE_EPOCH": str(program.epoch)}, stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True)
        if done.returncode != 0:
            raise SystemExit(f"packaging/build: rpmbuild failed:\n{done.stdout}")
        made, = glob.glob(os.path.join(top, "RPMS", "*", "*.rpm"))
        shutil.copy(made, os.path.join(out, os.path.basename(made)))
        return os.path.basename(made)
