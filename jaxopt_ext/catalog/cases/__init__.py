"""Arguments and references of functions, from which the conformance suite makes its cases."""
