"""Resume any PyTorch Lightning run with a bigger network, and lose nothing."""
