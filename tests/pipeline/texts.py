"""Made-up sentences for a classifier: which of two words comes more often. A `python:` data source of recipes."""

import torch
from torch.utils.data import DataLoader

WORDS, LENGTH = 20, 10


def samples(count, seed):
    """Token ids, which of them count, and labels; sentences end at different places."""
    random = torch.Generator().manual_seed(seed)
    ids = torch.randint(1, WORDS, (count, LENGTH), generator=random)
    lengths = torch.randint(4, LENGTH + 1, (count,), generator=random)
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    labels = ((ids == 1) & (mask > 0)).sum(1) >= ((ids == 2) & (mask > 0)).sum(1)
    return [
        {"input_ids": i * m, "attention_mask": m, "labels": label}
        for i, m, label in zip(ids, mask, labels.long(), strict=True)
    ]


def make_loaders(batch_size=32):
    """(train, test) of dictionaries, as transformers' tokenizers and collators give them."""
    return (
        DataLoader(samples(128, 0), batch_size, shuffle=True, generator=torch.Generator()),
        DataLoader(samples(64, 1), batch_size),
    )
