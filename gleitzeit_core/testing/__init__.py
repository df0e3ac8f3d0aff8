"""For authors' tests and the core's own: a clock moved by hand, the machine without asyncio, small hubs, conformance.

    clock         time that passes when a test says so
    machine       `Admission` driven step by step, its effects recorded
    contract      a hub as awkward as they come: exclusive, created with a delay, called, not to be cancelled, used up
    streams       a hub reached by duplex bytes
    web           a hub reached over HTTP, on a real socket
    conformance   test classes to subclass: what every hub, provider, strategy and store must do

Nothing in here needs more than the core itself; the conformance classes are run by pytest.
"""
