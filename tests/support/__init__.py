"""What the generic tests share: the matrix of ops, backends and cases, the oracle, the error budget, memory tricks."""
