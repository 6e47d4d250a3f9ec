"""Weights as other programs keep them: a Hugging Face folder, safetensors, plain state dicts."""
