"""What runs on the far side: in a container, a pod, or a child process.

These files are sent there as text and run by whatever Python is found there, so they need nothing but its standard
library, and nothing newer than Python 3.8. `gleitzeit_python.runner` puts them together.

    agent      a frame at a time from its owner; starts, feeds, watches and ends payloads, cleans up, and says so
    zygote     forks pristine children; never sees a payload
    payload    what such a child does: limits, another user, then the code itself
"""
