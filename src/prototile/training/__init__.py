"""Training: so far the optimisers and what is done to gradients before they are used."""
