"""From two folders of pictures to a detector's file, and what became of it since."""
