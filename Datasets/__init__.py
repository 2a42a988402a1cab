"""The data of the method: lists, prepared faces, batches, and the two scripts that make lists and demo faces."""
