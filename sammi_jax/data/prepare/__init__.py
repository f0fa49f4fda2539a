"""From the owners' files to prepared data sets, and their examination."""
