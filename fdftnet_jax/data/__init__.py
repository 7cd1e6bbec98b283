"""From image files and toy pictures to batches, and their augmentation."""
