"""Pure array functions that the networks spend their time in, with their gradients."""
