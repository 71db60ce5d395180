"""Recurrent networks: RNN, LSTM and GRU layers, their stacks, and single steps."""
