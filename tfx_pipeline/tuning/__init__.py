"""Search for hyperparameters on the validation part."""
