"""Training steps at full size on a fake GPU: devices, types, memory and waits, without a GPU."""
