"""Rank choice: what a layer costs, what a rank loses, and which ranks to take. Nothing here needs PyTorch."""
