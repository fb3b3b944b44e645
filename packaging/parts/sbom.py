"""The program's parts as CycloneDX 1.6 JSON: each crate with its licence, package URL and the checksum of its registry file. Crates of
this repository have no package URL: on a registry other packages have their names."""
import datetime, hashlib, json, uuid

OWN_GROUP = "coracle"
NAMESPACE = uuid.UUID("6b1a5bb5-7f1b-5d44-9a54-0b1c1f0a7d21")


def reference(crate):
    return f"pkg:cargo/{crate.name}@{crate.version}" if crate.checksum else f"{OWN_GROUP}/{crate.name}@{crate.version}"


def licences(text):
    return [{"expression": text}]


def component(crate):
    row = {"type": "library", "bom-ref": reference(crate), "name": crate.name, "version": crate.version}
    if crate.description:
        row["description"] = " ".join(crate.description.split())
    row["licenses"] = licences(crate.licence)
    if crate.checksum:
        row["hashes"] = [{"alg": "SHA-256", "content": crate.checksum}]
        row["purl"] = reference(crate)
    else:
        row["group"] = OWN_GROUP
    if crate.repository.startswith("https://"):
        row["externalReferences"] = [{"type": "vcs", "url": crate.repository}]
    return row


def document(program, linked, embedded, modules, toolchain):
    """The SBOM of a program (packaging/build's Program). `modules` are the names of embedded modules among `embedded`."""
    crates = {reference(crate): crate for crate in [*linked.values(), *embedded.values()]}
    by_key = {**{crate.key: reference(crate) for crate in crates.values()}}
    root = next(crate for crate in linked.values() if crate.name == "coracle")
    needs = {reference(crate): {by_key[key] for key in crate.needs} for crate in crates.values()}
    own = reference(root)
    needs[own] |= {reference(crate) for crate in embedded.values() if crate.name in modules} | {toolchain["bom-ref"]}
    needs[toolchain["bom-ref"]] = set()
    main = {
        "type": "application", "bom-ref": own, "name": "coracle", "version": program.version, "description": root.description,
        "licenses": licences(root.licence), "hashes": [{"alg": "SHA-256", "content": hashlib.sha256(program.data).hexdigest()}],
        "properties": [{"name": "coracle:commit", "value": program.commit}, {"name": "coracle:target", "value": program.target}],
    }
    rows = [component(crate) for ref, crate in sorted(crates.items()) if ref != own] + [toolchain]
    body = {
        "metadata": {
            "timestamp": datetime.datetime.fromtimestamp(program.epoch, datetime.timezone.utc).strftime("%Y-%m-%dT%H:%M:%SZ"),
            "tools": {"components": [{"type": "application", "group": OWN_GROUP, "name": "packaging/build"}]},
            "component": main,
        },
        "components": rows,
        "dependencies": [{"ref": ref, "dependsOn": sorted(needs[ref])} for ref in sorted(needs)],
    }
    serial = uuid.uuid5(NAMESPACE, json.dumps(body, sort_keys=True))
    head = {"$schema": "http://cyclonedx.org/schema/bom-1.6.schema.json", "bomFormat": "CycloneDX", "specVersion": "1.6",
            "serialNumber": f"urn:uuid:{serial}", "version": 1}
    return (json.dumps({**head, **body}, indent=1, ensure_ascii=False) + "\n").encode()


def standard_library(release):
    """Rust's standard library, which no lock file names. Its version is that of the compiler."""
    return {"type": "library", "bom-ref": f"rust-std@{release}", "name": "rust-std", "version": release,
            "description": "Rust's standard library with its own dependencies", "licenses": licences("MIT OR Apache-2.0"),
            "purl": f"pkg:generic/rust-std@{release}"}
