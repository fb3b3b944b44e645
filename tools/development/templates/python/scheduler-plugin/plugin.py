"""A scheduler plugin: it rejects nodes with the label `{{name}}/avoid` and full nodes, and prefers nodes with few pods."""
from componentize_py_types import Err
from wit_world.exports import plugin
from wit_world.exports.plugin import Candidate, Node, Refusal

from policy import AVOID, is_avoided, pods_max, score


class Instance(plugin.Instance):
    def __init__(self, most: int | None) -> None:
        self.pods_max = most
        self.avoided: set[str] = set()

    @classmethod
    def open(cls, config: str) -> "Instance":
        try:
            return cls(pods_max(config))
        except ValueError as error:
            raise Err(str(error))

    def set_nodes(self, nodes: list[Node]) -> None:
        self.avoided -= {node.name for node in nodes}
        self.avoided |= {node.name for node in nodes if is_avoided(node.object)}

    def remove_nodes(self, names: list[str]) -> None:
        self.avoided -= set(names)

    def filter(self, pod: str, candidates: list[Candidate]) -> list[Refusal]:
        refusals = []
        for at, candidate in enumerate(candidates):
            if candidate.node in self.avoided:
                refusals.append(Refusal(at, f"node(s) had the label {AVOID}", True))
            elif self.pods_max is not None and candidate.pods >= self.pods_max:
                # Preemption may remove pods, so this is resolvable.
                refusals.append(Refusal(at, f"node(s) had {self.pods_max} pods", False))
        return refusals

    def score(self, pod: str, candidates: list[Candidate]) -> list[int]:
        return [score(candidate.pods) for candidate in candidates]
