"""Matrix and sparse kernels for JAX, with Pallas and XLA bodies."""
