"""Training side of SpecViT Deploy: emulator fit, Vision Transformer, baselines, evaluation (needs torch)."""
