"""Must not be imported: it needs a newer core."""

raise AssertionError("it needs a newer core")
