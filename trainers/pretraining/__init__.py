"""Pre-training of Spa3R by Predictive Spatial Field Modeling, and its evaluation."""
