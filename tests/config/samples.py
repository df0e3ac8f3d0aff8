"""Configurations and plugins that more than one test of the configuration uses."""

from __future__ import annotations

FULL = """
hubs:
  hall:
    type: lamp
    discover: true
    instances: ["http://a", {url: "http://b", weight: 2, colour: red}]
  cellar: {type: lamp}
routes:
  - {methods: ["light/on", "light/off"], hubs: [hall], strategy: {name: brightest, patience_s: 3}, max_queue: 0}
  - {methods: ["light/*"], strategy: round_robin, timeout_s: null, max_tries: 1}
providers: {light: {dim: true}}
store: {type: drawer, path: /tmp}
mains: {port: 9000}
"""
OPTIONS = """
from gleitzeit_core.hookspecs import HubType, SectionType, ProviderType, hookimpl
@hookimpl
def gleitzeit_register_hubs():
    return [HubType(name="odd", target="gz_x:X", options="gz_x:X", summary="")]
@hookimpl
def gleitzeit_register_providers():
    return [ProviderType(name="odd", target="gz_x:X", options="gz_x:X", summary="")]
@hookimpl
def gleitzeit_register_sections():
    return [
        SectionType(name="odd", options="gz_x:X", summary=""),
        SectionType(name="strict", options="gz_one_parts:Drawer", summary=""),
    ]
"""
