"""The article's three networks, trained by this library, by plain PyTorch and by Keras 3: time of an epoch, accuracy.

    python -m bench networks                              all three, five epochs, three seeds
    python -m bench networks cnn --epochs 1 --seeds 1     one

All three trainers have the same architecture, initial distributions, optimizer, batch size and data. They train an
epoch each in turn, so that what disturbs one disturbs the others; ratios are taken within a turn.
"""
