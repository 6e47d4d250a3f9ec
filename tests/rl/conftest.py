"""Register the environments of this folder for all its tests."""

import environments  # noqa: F401
