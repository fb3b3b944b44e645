#!/usr/bin/env python3
"""Compares answers to mutated objects (`run.py` of ../shared/tools/mutations) with upstream's, of which only digests are kept.

  answers.py compare TOOLS CORACLE.gz [IDS…]     prints each difference that is not accepted; exits with 1 if there is one
  answers.py record TOOLS UPSTREAM.gz CORACLE.gz writes the digests of objects in both files, and their differences as accepted ones
  answers.py objects TOOLS                       prints the recorded objects

`recorded.jsonl.gz` has a line for each object and mode: a digest of the requests in their order, and three bytes for each answer; zero bytes
stand for an answer that can't be compared (upstream closed the connection, a random name, a controller's timing). `accepted.txt` has a
line for each accepted difference: object, mode, the request's number, and the digest of Coracle's answer, below a heading with the reason.
"""
import base64, collections, gzip, hashlib, json, os, re, sys

HERE = os.path.dirname(os.path.abspath(__file__))
RECORDED, ACCEPTED = os.path.join(HERE, "recorded.jsonl.gz"), os.path.join(HERE, "accepted.txt")
BYTES = 3
NONE = bytes(BYTES)
RANDOM_NAME = [["metadata"], "set", {"generateName": "a"}]
# Fields of an answer that are compared, beside its message.
FIELDS = ("code", "reason", "causes", "warn", "obj", "text", "details")


def digest(value, length):
    found = hashlib.sha256(json.dumps(value, sort_keys=True).encode()).digest()[:length]
    return found if any(found) else b"\1" * length


def read(path, tools, side, only=()):
    """{(id, mode): [(request, cleaned answer)]} in order."""
    rows = collections.OrderedDict()
    with gzip.open(path, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            if not only or row["id"] in only:
                answer = tools.clean(row["a"], side, row["mode"])
                rows.setdefault((row["id"], row["mode"]), []).append((row["m"], answer))
    return rows


def of_answer(answer, tools):
    return digest([[answer.get(field) for field in FIELDS], tools.msgset(answer.get("message"))], BYTES)


def of_requests(rows):
    return digest([request for request, _ in rows], 8).hex()


def accepted():
    found = {}
    for line in open(ACCEPTED):
        if line.strip() and not line.startswith("#"):
            name, mode, number, hexed = line.split()
            found[name, mode, int(number)] = bytes.fromhex(hexed)
    return found


def compare(tools, path, only):
    recorded = {}
    with gzip.open(RECORDED, "rt") as lines:
        for line in lines:
            row = json.loads(line)
            recorded[row["id"], row["mode"]] = row
    known, wrong = accepted(), 0
    counts = collections.Counter()
    for (name, mode), rows in read(path, tools, "c", only).items():
        expected = recorded.get((name, mode))
        if expected is None or expected["requests"] != of_requests(rows):
            print(f"{name} {mode}: other requests than recorded (objects or defaults have changed)")
            wrong += 1
            continue
        answers = base64.b64decode(expected["answers"])
        for number, (request, answer) in enumerate(rows):
            upstream, own = answers[number * BYTES:][:BYTES], of_answer(answer, tools)
            if upstream == NONE:
                counts["not compared"] += 1
            elif own == upstream:
                counts["equal"] += 1
            elif known.get((name, mode, number)) == own:
                counts["accepted"] += 1
            else:
                wrong += 1
                print(f"{name} {mode} {number} {json.dumps(request)[:300]}\n  {json.dumps(answer)[:1000]}")
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) + f", {wrong} different")
    return 1 if wrong or not counts["equal"] else 0


def reason(lines):
    """A heading for differences alike: which causes or fields differ, without values."""
    parts = []
    for line in lines[:3]:
        cause = re.match(r" *([-+][UC]) (\[.*\])?", line)
        if cause and cause[2]:
            try:
                why, field, message = json.loads(cause[2])
                parts.append(f"{cause[1]} {field}: {message.split(':')[-1].strip()[:60]}")
                continue
            except ValueError:
                pass
        parts.append(re.split(r": U |: \{|\[\{", line.strip())[0][:90] if not cause else f"{cause[1]} {line.split(', ')[1][:60]}")
    return re.sub(r"x{20,}", "xx…", re.sub(r"\d+", "N", "; ".join(parts))).replace("\n", " ")[:200]


def record(tools, upstream_path, coracle_path):
    upstream, own = read(upstream_path, tools, "u"), read(coracle_path, tools, "c")
    kept = collections.OrderedDict()
    counts = collections.Counter()
    with gzip.GzipFile(RECORDED, "wb", mtime=0) as out:
        for (name, mode), rows in upstream.items():
            found = own.get((name, mode))
            if found is None or len(found) < len(rows):
                continue
            if [request for request, _ in rows] != [request for request, _ in found]:
                sys.exit(f"{name} {mode}: the two files have other requests")
            answers = b""
            for number, ((request, answer), (_, ours)) in enumerate(zip(rows, found)):
                if answer["code"] == 0 or request == RANDOM_NAME:
                    answers += NONE
                    counts["not compared"] += 1
                    continue
                answers += of_answer(answer, tools)
                if of_answer(answer, tools) == of_answer(ours, tools):
                    counts["equal"] += 1
                    continue
                counts["accepted"] += 1
                heading = reason(tools.describe(answer, ours))
                kept.setdefault(heading, []).append(f"{name} {mode} {number} {of_answer(ours, tools).hex()}")
            line = {"id": name, "mode": mode, "requests": of_requests(rows), "answers": base64.b64encode(answers).decode()}
            out.write((json.dumps(line) + "\n").encode())
    with open(ACCEPTED, "w") as out:
        out.write("# Accepted differences from upstream, by kind (U: upstream's answer, C: Coracle's); docs/compatibility.md has the reasons.\n")
        for heading, lines in sorted(kept.items(), key=lambda item: (-len(item[1]), item[0])):
            out.write(f"# {len(lines)}: {heading}\n" + "\n".join(lines) + "\n")
    print(dict(counts))


def main():
    what, folder, *paths = sys.argv[1:]
    sys.path.insert(0, folder)
    import diff as tools
    if what == "record":
        return record(tools, *paths)
    if what == "objects":
        with gzip.open(RECORDED, "rt") as lines:
            print("\n".join(dict.fromkeys(json.loads(line)["id"] for line in lines)))
        return 0
    return compare(tools, paths[0], set(paths[1:]))


if __name__ == "__main__":
    sys.exit(main())
