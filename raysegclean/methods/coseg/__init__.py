"""Co-Seg (Huang et al., arXiv 2102.00523)."""
