"""Must not be imported: the configuration disables it."""

raise AssertionError("the configuration disables it")
