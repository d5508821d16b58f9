"""What the SpecViT study published, for comparison: other spectra (BOSZ grid), other labels, other test spectra.

Wei et al., in preparation. Values that were scored on 500 spectra only are left out.
"""

VIT = {50_000: 0.434, 100_000: 0.596, 200_000: 0.673, 500_000: 0.709, 1_000_000: 0.711}
"""R2 of log g of the ViT (p16_h256_L6, 200 epochs) by number of labelled spectra, on 10,000 test spectra."""
LIGHTGBM = {1_000_000: 0.614}
RIDGE = {1_000_000: 0.496}
POINTS = {"ViT": VIT, "LightGBM": LIGHTGBM, "ridge": RIDGE}
SCENARIO = "study"
"""The scenario that copies its protocol; others are not comparable."""
