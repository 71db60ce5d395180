"""Measures the kernels: against PyTorch, torch.compile, ONNX Runtime, OpenVINO, and this machine's own limits.

    python -m bench                           every case that networks use, forward, one thread
    python -m bench "conv*" --case resnet --pass training --threads 1 2
    python -m bench compare OLD.json NEW.json regressions, with a noise band
    python -m bench overhead                  what Python costs a call
    python -m bench auto                      whether automatic choice takes the faster of our kernels and torch's
    python -m bench cold                      import and first call, in fresh processes
    python -m bench networks                  the article's networks trained beside PyTorch and Keras
    pytest bench/                             the same cases under pytest-benchmark

Run from the repository's root. No time is shown for a result that is outside the error budget (`bench.budget`).
"""
