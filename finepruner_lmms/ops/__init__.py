"""Plain tensor operations that methods share: top-k, clustering, grids, token scores of heads. No model."""
