"""prototile: self-supervised vision models whose representations are clusters."""
