"""Low-rank decomposition: weights into factors, layers into factorised layers, models into smaller models."""
