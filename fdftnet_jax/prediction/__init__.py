"""From files of any kind to verdicts: what `fdftnet predict` does."""
