"""unpack.py FOLDER ROOT: unpacks an image, as `skopeo copy … dir:FOLDER` writes it, with owners and modes; prints its user."""
import hashlib, json, os, sys, tarfile


def blob(folder, descriptor):
    path = os.path.join(folder, descriptor["digest"].removeprefix("sha256:"))
    with open(path, "rb") as file:
        if hashlib.file_digest(file, "sha256").hexdigest() != descriptor["digest"].removeprefix("sha256:"):
            raise SystemExit(f"FAIL: {path} has another digest")
    return path


def main():
    folder, root = sys.argv[1:3]
    with open(os.path.join(folder, "manifest.json"), encoding="utf-8") as file:
        manifest = json.load(file)
    for layer in manifest["layers"]:
        with tarfile.open(blob(folder, layer)) as archive:
            archive.extractall(root, numeric_owner=True)
    os.makedirs(os.path.join(root, "proc"), exist_ok=True)
    with open(blob(folder, manifest["config"]), encoding="utf-8") as file:
        config = json.load(file)["config"]
    if config["Entrypoint"] != ["/usr/bin/coracle"] or "/var/lib/coracle" not in config["Volumes"]:
        raise SystemExit(f"FAIL: the image's configuration: {config}")
    print(config["User"])


if __name__ == "__main__":
    main()
