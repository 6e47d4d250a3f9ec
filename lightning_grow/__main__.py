"""`python -m lightning_grow` is `lightning-grow`."""

from lightning_grow.app.cli import main

if __name__ == "__main__":
    main()
