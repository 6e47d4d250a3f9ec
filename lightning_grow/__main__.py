"""`python -m lightning_grow` is `lightning-grow`."""

from lightning_grow.cli import main

if __name__ == "__main__":
    main()
