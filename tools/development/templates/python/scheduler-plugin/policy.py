"""The plugin's decisions. This file imports nothing of WASI, so that tests run without it."""
import json

AVOID = "{{name}}/avoid"


def is_avoided(node: str) -> bool:
    """Whether a Node, as JSON, has the label."""
    return AVOID in json.loads(node).get("metadata", {}).get("labels", {})


def pods_max(config: str) -> int | None:
    """`podsMax` of the configuration, which is JSON or empty."""
    most = json.loads(config).get("podsMax") if config else None
    if most is not None and (not isinstance(most, int) or most < 0):
        raise ValueError("config.podsMax is no number")
    return most


def score(pods: int) -> int:
    """0 to 100 points: more for fewer pods."""
    return max(0, 100 - pods)
