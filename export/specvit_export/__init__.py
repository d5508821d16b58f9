"""Export side of SpecViT Deploy: checkpoint to ONNX, parity gate, bundle."""
