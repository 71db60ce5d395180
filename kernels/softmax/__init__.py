"""softmax, log_softmax and cross_entropy: everything that divides by a sum of exponentials along one dimension."""
