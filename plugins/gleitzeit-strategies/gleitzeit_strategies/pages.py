"""When to use which: the text of ``gleitzeit strategies show NAME``."""

from __future__ import annotations

from types import MappingProxyType
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Mapping

PAGES: Mapping[str, str] = MappingProxyType(
    {
        "weighted": "Use it for instances of different size when you know how different, and requests that cost about "
        "the same. Within as many requests as all weights together, each instance gets exactly its weight's number.\n\n"
        "It does not look at load: an instance that has become slow keeps its share of the requests. least_loaded with "
        "weights notices.",
        "power_of_two": "Use it for many gateways without shared state: each sees only its own work, and all of them "
        "choosing the least loaded would choose the same one. Two random choices come close to the best, and avoid "
        "that.\n\nFor one gateway, least_loaded is a little better.",
        "ewma": "Use it for instances whose speed differs and changes, such as machines that others use as well. The "
        "time per token is averaged over about time_constant_s, and an instance that hangs is avoided as soon as its "
        "oldest request has become too old, before anything ends.\n\nWhat fails quickly does not look fast: with one "
        "of ten tries failing an instance counts as one and a half times as slow, with four as eight times. With time "
        "alone an estimate goes back to the mean of all, so that an instance that was slow is tried again.",
        "adaptive": "Use it for machines of different speed that you do not want to describe by weights: it is "
        "least_loaded with weights that are measured, from the time per token of whole answers. It looks at up to "
        "choices free instances and so finds the best of a small pool for certain; ewma draws two and reacts faster."
        "\n\nWeights in the configuration are not used.",
        "consistent_hash": "Use it when an instance answers faster what it has seen before: the prompt cache of a "
        "conversation, a session's files. Requests with the same key go to the same instance while it has no more "
        "than bound times its share; then to the next in the key's own order, always the same. When an instance comes "
        "or goes, only its own keys move, and all replicas agree without talking.\n\nThe key is the first of key that "
        "a request has: what its caller names (affinity; at the gateway the header X-Gleitzeit-Affinity), its session "
        "or user field, or the beginning of its prompt. Without any, the least loaded instance gets it.",
        "model_affinity": "Use it for servers that load models on demand, such as Ollama, with more models than fit "
        "into memory. For each instance it estimates when the answer would be there: the work ahead at the speed "
        "learned for the model, the load of a cold model (learned from first outputs, else from its size), and the "
        "reloads of what that puts out of memory.\n\nWhile an instance that has the model is busy and the wait for it "
        "is estimated shorter than loading it elsewhere, requests wait. The length of the queue alone never loads a "
        "model anew; a request that has waited much longer than it was to take gets whatever is free. A model that was "
        "loaded while others wait for it stays for twice as long as the load took, so that more models than fit take "
        "turns instead of putting each other out.",
        "priority": "Use it to keep work on machines you have paid for: tiers: [local, cloud] uses the cloud only "
        "when everything local is down or (spill: full) busy. Within a tier the least loaded gets the request; before "
        "another strategy in a chain, that one chooses within the tier.\n\nWith spill: down requests wait for the "
        "first tier however busy it is.",
        "locality": "Use it before another strategy, as in [locality, ewma]: what is near is preferred, further "
        "instances are used when fewer than enough near ones are up, or when those have no room. Alone it picks the "
        "least loaded of what is near.\n\nIn contrast to priority each step further away includes what is nearer.",
        "tagged": "Use it before another strategy to keep a route on instances with certain tags, or away from "
        "others, as in [{name: tagged, none: [spot]}, least_loaded]. When no such instance is up, requests "
        "fail at once, or with strict: false any will do.",
    }
)
