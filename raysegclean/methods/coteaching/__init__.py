"""Co-teaching (Han et al., NeurIPS 2018)."""
