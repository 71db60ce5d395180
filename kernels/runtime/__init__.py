"""What the backends stand on: compiling and its disk cache, threads, memory, devices. One module a backend."""
