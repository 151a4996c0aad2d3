"""Models that judge what others generate, trained on real data alone or by other people."""
