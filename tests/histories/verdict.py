"""All checks of one recorded history, and the report of a failure."""
import porcupine, revisions, watches
from truth import Truth

PROBLEMS_SHOWN = 5
OPERATIONS_SHOWN = 12


def problems(history):
    """Problems: (rule, text, keys)."""
    truth = Truth(history.watches)
    return truth.problems + watches.check(history, truth) + revisions.check(history, truth) + porcupine.check(history)


def report(history, found):
    lines = [f"seed {history.seed}, store {history.store}, namespace {history.namespace}; faults (seconds): {history.faults or 'none'}"]
    shown = set()
    for rule, text, keys in found[:PROBLEMS_SHOWN]:
        lines.append(f"{rule}: {text}")
        lines += [f"    {key}: {line}" for key in keys[:1] if key not in shown for line in excerpt(history, key, text)]
        shown.update(keys[:1])
    if len(found) > PROBLEMS_SHOWN:
        lines.append(f"and {len(found) - PROBLEMS_SHOWN} more problems")
    return "\n".join(lines)


def excerpt(history, key, text):
    """The operations on the key around the one that the problem names."""
    operations = sorted((op for op in history.operations if op.key == key), key=lambda op: op.call)
    at = next((number for number, op in enumerate(operations) if text.startswith(str(op))), len(operations) - OPERATIONS_SHOWN // 2)
    first = max(0, at - OPERATIONS_SHOWN // 2)
    return [str(op) for op in operations[first : first + OPERATIONS_SHOWN]]
