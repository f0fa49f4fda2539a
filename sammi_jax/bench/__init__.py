"""Speed side by side with PyTorch (``sammi bench``)."""
