"""The configuration; a package, so that `pkg://lightning_grow.conf` is found in a checkout and in a wheel alike."""
