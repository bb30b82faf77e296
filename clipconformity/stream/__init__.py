"""One pass over raw embeddings, without torchmetrics: sums, row sample, reference sets, and read-outs."""
