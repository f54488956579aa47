"""What the long history is worth: every system of the field on one protocol."""
