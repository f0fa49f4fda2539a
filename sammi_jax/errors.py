"""The one exception that means "the input is at fault": a single line for the user."""


class SammiError(Exception):
    """Input that cannot be used. The message is one line: the culprit, then the mend."""
