"""A plugin whose SDK is not installed."""

import gz_no_such_sdk  # type: ignore[import-not-found]  # noqa: F401
